"""What a plan removes from every tensor of the original: the prediction that the edited network must fulfil."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from simprune.core.plan import Edit, Plan
from simprune.core.structures import Coupling, NotPrunable
from simprune.structures import unit_structures
from simprune.trace.network import Network


@dataclass(frozen=True)
class Effects:
    """What a plan removes, in the original's numbering.

    Args:
        removed: indices of removed entries, by tensor and dimension.
        dropped: blocks that are removed whole.
        producers: for every edit of units, the layers that produce the same channels in the same order.
        moved: modules in a list from which others went, with the names that they have afterwards.
    """

    removed: Mapping[tuple[str, int], tuple[int, ...]]
    dropped: tuple[str, ...]
    producers: Mapping[str, tuple[str, ...]]
    moved: Mapping[str, str] = field(default_factory=dict)

    @property
    def cut(self) -> dict[tuple[str, int], int]:
        """Number of removed entries, by tensor and dimension, as `CostModel.after` takes it."""
        return {key: len(indices) for key, indices in self.removed.items()}

    def inside_dropped(self, name: str) -> bool:
        """Whether a module or tensor is removed with a block."""
        return any(name == block or name.startswith(f"{block}.") for block in self.dropped)

    def name_now(self, name: str) -> str:
        """The name that a module or tensor of the original has in the edited network."""
        old = next((old for old in self.moved if f"{name}.".startswith(f"{old}.")), None)
        return name if old is None else self.moved[old] + name.removeprefix(old)

    def remaining(self, tensor: str, dim: int, length: int) -> list[int]:
        """The original's indices that remain of `length` entries along one dimension of a tensor."""
        removed = set(self.removed.get((tensor, dim), ()))
        return [index for index in range(length) if index not in removed]


def effects_of(plan: Plan, network: Network) -> Effects:
    """The effects of a plan on a network; ValueError for an edit that cannot be made."""
    removed: dict[tuple[str, int], set[int]] = {}
    producers: dict[str, tuple[str, ...]] = {}
    for edit, coupling in unit_edits(plan, network):
        units = _whole_units(edit, coupling.units)
        same = (part.module for part in coupling.slices if part.side == "out" and part.indices == coupling.units)
        producers[edit.name] = tuple(dict.fromkeys(same))
        for part in coupling.slices:
            gone = {index for unit in units for index in part.indices[unit]}
            removed.setdefault((part.tensor, part.dim), set()).update(gone)
    removed_entries = {key: tuple(sorted(gone)) for key, gone in removed.items()}
    return Effects(removed_entries, plan.blocks, producers, _moved(plan, network))


def _moved(plan: Plan, network: Network) -> dict[str, str]:
    """Experts in lists, with the names that they have when others have gone."""
    moved: dict[str, str] = {}
    for edit in plan.of_kind("experts"):
        members = network.mixtures[edit.name].members
        remaining = [member for number, member in enumerate(members) if number not in edit.indices]
        moved |= {old: new for old, new in zip(remaining, members, strict=False) if old != new}
    return moved


def unit_edits(plan: Plan, network: Network) -> Iterator[tuple[Edit, Coupling]]:
    """Every edit that removes units, with the units and the entries that they own; ValueError if they must stay."""
    for kind, structure in unit_structures().items():
        for edit in plan.of_kind(kind):
            try:
                coupling = structure.coupling(network, edit.name)
            except NotPrunable as reason:
                raise ValueError(f"plan: {kind} of {edit.name} cannot be removed: {reason}") from None
            width = sum(map(len, coupling.units))
            if edit.of != width:
                raise ValueError(f"plan: {edit.name} has {width} {kind}, not {edit.of}")
            yield edit, coupling


def _whole_units(edit: Edit, groups: Sequence[Sequence[int]]) -> list[int]:
    """The units that an edit removes; ValueError when it splits one."""
    listed, units = set(edit.indices), []
    for number, unit in enumerate(groups):
        if listed.issuperset(unit):
            units.append(number)
        elif not listed.isdisjoint(unit):
            raise ValueError(
                f"plan: {edit.remove} {list(unit)} of {edit.name} can only go together; list all of them or none "
                f"(listed: {sorted(listed.intersection(unit))})"
            )
    return units
