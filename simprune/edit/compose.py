"""Two plans, one after the other, as one plan of the original.

The second plan is of the network that the first one gave, and counts what is left there. In one plan everything has the
original's names and indices.
"""

from dataclasses import replace

from torch import nn

from simprune.core.plan import Edit, Plan
from simprune.core.structures import Coupling, NotPrunable
from simprune.edit.compact import restored
from simprune.edit.effects import Effects, effects_of
from simprune.structures import unit_structures
from simprune.trace.network import Network


def composed(first: Plan, second: Plan, network: Network, small: nn.Module) -> Plan:
    """The plan that removes from the original what two plans remove one after the other.

    Args:
        first: of the original.
        second: of the network that the first gives.
        network: the original.
        small: what the first gives, whatever its weights.

    Raises:
        ValueError: where an edit of the second plan has no counterpart in the original.
    """
    names = _names(small)
    effects = effects_of(first, network)
    blocks = {names.get(edit.name, edit.name): edit for edit in second.whole}
    gone = tuple(dict.fromkeys((*first.blocks, *blocks)))
    edits: dict[tuple[str, str], Edit] = {}
    for edit in first.whole:
        if not _inside(edit.name, blocks):
            edits["block", edit.name] = edit
    for name, edit in blocks.items():
        edits["block", name] = replace(edit, name=name)
    units = [(edit, edit.indices) for edit in first.edits if edit.remove != "block"]
    for edit in second.edits:
        if edit.remove != "block":
            own = replace(edit, name=names.get(edit.name, edit.name))
            coupling = _coupling(own, network)
            units.append((replace(own, of=sum(map(len, coupling.units))), _in_original(own, coupling, effects)))
    for edit, indices in units:
        name = _outside(edit.name, gone, effects)
        if name is None:  # all that it would remove goes with a block
            continue
        before = edits.get((edit.remove, name))
        union = tuple(sorted({*indices, *(before.indices if before is not None else ())}))
        edits[edit.remove, name] = replace(edit, name=name, indices=union)
    order = {name: number for number, (name, _) in enumerate(network.model.named_modules())}
    both = sorted(edits.values(), key=lambda edit: order.get(edit.name, len(order)))
    damages = [plan.expected["damage"] for plan in (first, second) if "damage" in plan.expected]
    expected = {**second.expected, "damage": sum(damages)} if damages else second.expected
    return replace(first, edits=tuple(both), budget=second.budget, planner=second.planner, expected=expected)


def _names(small: nn.Module) -> dict[str, str]:
    """The original's names of modules, by their names in a list from which layers were deleted."""
    with restored(small):
        original = {id(module): name for name, module in small.named_modules(remove_duplicate=False)}
    return {name: original[id(module)] for name, module in small.named_modules() if id(module) in original}


def _coupling(edit: Edit, network: Network) -> Coupling:
    try:
        return unit_structures()[edit.remove].coupling(network, edit.name)
    except NotPrunable as reason:
        raise ValueError(f"plan: {edit.remove} of {edit.name} cannot be removed from the original: {reason}") from None


def _in_original(edit: Edit, coupling: Coupling, effects: Effects) -> tuple[int, ...]:
    """The original's numbers of the units that an edit of a smaller network removes."""

    def is_gone(unit: int) -> bool:
        return any(
            set(part.indices[unit]) <= set(effects.removed.get((part.tensor, part.dim), ()))
            for part in coupling.slices
            if part.indices[unit] and not effects.inside_dropped(part.tensor)
        )

    left = [number for unit, numbers in enumerate(coupling.units) if not is_gone(unit) for number in numbers]
    if len(left) != edit.of:
        raise ValueError(f"plan: {edit.name} has {edit.of} {edit.remove} left, of the original's {len(left)} remain")
    return tuple(sorted(left)[index] for index in edit.indices)


def _inside(name: str, blocks: object) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)  # type: ignore[attr-defined]


def _outside(name: str, gone: tuple[str, ...], effects: Effects) -> str | None:
    """A layer with the same units that no removed block takes with it; None where there is none."""
    same = (name, *effects.producers.get(name, ()))
    return next((layer for layer in same if not _inside(layer, gone)), None)
