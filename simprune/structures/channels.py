"""Coupled channel groups: output channels of one layer with everything that has to go with them."""

from collections.abc import Sequence

from torch import nn

from simprune.core.cost import Example
from simprune.core.structures import ChannelGroup, NotPrunable, UnitGroup
from simprune.structures.proof import prove
from simprune.trace.coupling import ROOTS, CouplingGraph


def find_channel_groups(model: nn.Module, example: Example) -> tuple[list[ChannelGroup], list[tuple[str, str]]]:
    """All channel groups that can be removed safely, and the layers that cannot, with the reason.

    Every group is proven on a copy, see `simprune.structures.proof`.
    """
    try:
        graph = CouplingGraph(model, example)
    except NotPrunable as reason:
        layers = [name for name, module in model.named_modules() if name and isinstance(module, ROOTS)]
        return [], [(name, str(reason)) for name in layers]
    groups: list[ChannelGroup] = []
    refused: list[tuple[str, str]] = []
    covered: set[str] = set()
    for layer in graph.roots():
        if layer in covered:
            continue
        try:
            coupling = graph.coupling(layer)
            group = ChannelGroup(layer, len(coupling.units), coupling.slices, units=coupling.units)
            if group.size < 2:
                raise NotPrunable("its channels can only go all together" if group.width > 1 else "it has one channel")
            if not group.consumers:
                raise NotPrunable("its output is the network's output")
            if any(len(set(map(len, part.indices))) > 1 for part in group.slices if part.side == "in"):
                raise NotPrunable("its readers read different parts of it")
        except NotPrunable as reason:
            refused.append((layer, str(reason)))
            continue
        covered.update(group.producers)
        groups.append(group)

    def remove(copied: nn.Module, some: Sequence[UnitGroup]) -> None:
        traced = CouplingGraph(copied, example)
        for group in some:
            traced.prune(group.name, group.expand([group.size // 2]))

    proven, unproven = prove(model, example, groups, remove)
    return proven, refused + unproven
