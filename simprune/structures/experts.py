"""Experts of mixtures: an expert goes with its rows of the router, and tokens select among those that are left."""

from collections.abc import Sequence

import torch
from torch import nn

from simprune.core.cost import Example
from simprune.core.registry import register
from simprune.core.structures import Coupling, NotPrunable, Slice, UnitGroup
from simprune.structures import Refusals, UnitStructure
from simprune.structures.proof import prove
from simprune.trace.context import eval_mode
from simprune.trace.cut import cut
from simprune.trace.experts import EXPERT_COUNTS, Mixture, hidden_states, masking, mixtures
from simprune.trace.network import Network


@register("structure", "experts")
class Experts(UnitStructure):
    """Experts of mixtures, with their rows of the router; as many stay as a token selects.

    A group is named after the module that holds experts and router. A forward pass on a copy proves that a mixture
    without an expert equals one whose router never selects it. Routers that select among groups of experts first lose
    one expert of every group at a time.
    """

    kind = "experts"
    absent = "no module is a mixture: none holds experts, all alike, beside a router with a row for each"

    def find(self, network: Network) -> tuple[list[UnitGroup], Refusals]:
        groups: list[UnitGroup] = []
        refused: Refusals = []
        for name, mixture in network.mixtures.items():
            if name and name not in network.visits:
                refused.append((name, "it takes no part in the forward pass"))
            elif name and hidden_states(*network.visits[name].call) is None:
                refused.append((name, "its mixture gets more than the tokens"))
            elif len(mixture.units) <= mixture.least:
                refused.append((name, f"every token needs all of its {mixture.size} experts"))
            else:
                groups.append(expert_group(network.model, mixture))
        proven, unproven = prove(network, groups, self)
        return proven, refused + unproven

    def coupling(self, network: Network, name: str) -> Coupling:
        if name not in network.mixtures:
            raise NotPrunable("it has no experts that can be removed")
        group = expert_group(network.model, network.mixtures[name])
        return Coupling(group.units, group.slices)

    def remove(self, small: nn.Module, example: Example, edits: Sequence[tuple[Sequence[str], Sequence[int]]]) -> None:
        layouts = mixtures(small)
        for names, indices in edits:
            remove_experts(small, layouts[names[0]], indices)
        args, kwargs = example
        if any(layouts[names[0]].selected == 1 for names, _ in edits):  # it may only be unknown how many are selected
            with eval_mode(small), torch.no_grad():
                try:
                    small(*args, **kwargs)
                except Exception:  # a foreign forward pass may raise anything
                    raise NotPrunable("the network fails with fewer experts; keep as many as a token selects") from None

    def ignore(self, masked: nn.Module, group: UnitGroup, unit: int) -> None:
        module = masked.get_submodule(group.name)
        module.forward = masking(masked, mixtures(masked)[group.name], group.units[unit])


def expert_group(model: nn.Module, mixture: Mixture) -> UnitGroup:
    """The experts of one mixture as a group of units."""
    per_expert = tuple(mixture.units)
    slices = [Slice(tensor, dim, per_expert, "out") for tensor, dim in mixture.rows]
    slices += [Slice(tensor, 0, per_expert, "out") for tensor in mixture.fused]
    for number, member in enumerate(mixture.members):
        part = model.get_submodule(member)
        for key, tensor in [*part.named_parameters(), *part.named_buffers()]:
            if tensor.ndim:  # the whole tensor goes with its expert
                rows = tuple(tuple(range(len(tensor))) if number in unit else () for unit in mixture.units)
                slices.append(Slice(f"{member}.{key}", 0, rows, "out"))
    return UnitGroup(mixture.name, len(per_expert), tuple(slices), "experts", per_expert, mixture.least)


def remove_experts(model: nn.Module, mixture: Mixture, experts: Sequence[int]) -> None:
    """Remove experts from a mixture in place; in a list, those behind them move up.

    Args:
        model: that contains the mixture.
        mixture: as it is now.
        experts: their numbers.

    Raises:
        NotPrunable: when fewer would be left than a token selects.
    """
    remaining = mixture.size - len(experts)
    if remaining < mixture.least * mixture.groups:
        raise NotPrunable(
            f"{mixture.name}: {len(experts)} of {mixture.size} experts would go, and every token needs "
            f"{mixture.least * mixture.groups}; keep at least so many"
        )
    for tensor, dim in [*mixture.rows, *((tensor, 0) for tensor in mixture.fused)]:
        cut(model, tensor, dim, experts)
    if mixture.members:
        _renumber(model.get_submodule(mixture.container), set(experts))
    for module in model.get_submodule(mixture.name).modules():
        for name in EXPERT_COUNTS:
            if vars(module).get(name) == mixture.size:
                setattr(module, name, remaining)


def _renumber(container: nn.Module, gone: set[int]) -> None:
    """Delete members of a list; the others get the names of the first members, in order."""
    names, parts = zip(*container.named_children(), strict=True)
    remaining = [part for number, part in enumerate(parts) if number not in gone]
    container._modules.clear()
    for name, part in zip(names, remaining, strict=False):
        container._modules[name] = part
