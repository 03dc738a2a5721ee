"""Coupled channel groups: output channels of one layer, with all that has to be removed together with them.

Hidden units of an MLP and the width of a residual stream are channel groups as well. A group that several layers
produce, such as the width of a stream, is named after the first of these layers.
"""

from collections.abc import Sequence

from torch import nn

from simprune.core.cost import Example
from simprune.core.registry import register
from simprune.core.structures import Coupling, NotPrunable, UnitGroup
from simprune.structures import Refusals, UnitStructure
from simprune.structures.proof import prove
from simprune.trace.coupling import CouplingGraph
from simprune.trace.network import Network


@register("structure", "channels")
class Channels(UnitStructure):
    """Output channels of convolutions and linear layers, with all that is coupled to them.

    A forward pass on a copy proves the removals. Layers whose channels are coupled form one group.
    """

    kind = "channels"

    def find(self, network: Network) -> tuple[list[UnitGroup], Refusals]:
        graph = network.coupling
        groups: list[UnitGroup] = []
        refused: Refusals = []
        covered: set[str] = set()
        for layer in graph.roots():
            if layer in covered:
                continue
            try:
                group = _group(graph, layer)
            except NotPrunable as reason:
                refused.append((layer, str(reason)))
                continue
            covered.update(group.producers)
            groups.append(group)
        proven, unproven = prove(network, groups, self)
        return proven, refused + [(name, graph.refusal(name) or reason) for name, reason in unproven]

    def coupling(self, network: Network, name: str) -> Coupling:
        return network.coupling.coupling(name)

    def remove_from_copy(
        self, network: Network, copy: nn.Module, edits: Sequence[tuple[Sequence[str], Sequence[int]]]
    ) -> None:
        network.coupling.prune([(layers[0], sorted(indices)) for layers, indices in edits], copy)

    def remove(self, small: nn.Module, example: Example, edits: Sequence[tuple[Sequence[str], Sequence[int]]]) -> None:
        graph = CouplingGraph(small, example)
        of_layers = []
        for layers, indices in edits:
            layer = next((layer for layer in layers if graph.is_root(layer)), None)
            if layer is None:
                raise NotPrunable(f"no layer that makes the channels of {layers[0]} is left")
            of_layers.append((layer, sorted(indices)))
        graph.prune(of_layers)


def _group(graph: CouplingGraph, layer: str) -> UnitGroup:
    """The channels of a layer; NotPrunable, with the reason, where no single channel can be removed."""
    coupling = graph.coupling(layer)
    group = UnitGroup(layer, len(coupling.units), coupling.slices, "channels", coupling.units)
    if group.size < 2:
        raise NotPrunable("its channels can only go all together" if group.width > 1 else "it has one channel")
    if not group.consumers:
        raise NotPrunable("its output is the network's output")
    if any(len(set(map(len, part.indices))) > 1 for part in group.slices if part.side == "in"):
        raise NotPrunable("some of its channels have readers that others do not have, so they are not interchangeable")
    return group
