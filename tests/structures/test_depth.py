"""Finding structures takes passes in proportion to nothing but the logarithm of the depth, and no work twice."""

import pytest
import torch
from torch import nn
from torch_pruning.dependency import constants

from simprune.core.structures import NotPrunable
from simprune.structures import structure
from simprune.trace.coupling import CouplingGraph
from simprune.trace.network import Network
from simprune.zoo.residual import ResidualCNN

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def deep(depth: int, shortcut: str, widths: tuple[int, int] = (6, 8)) -> nn.Module:
    torch.manual_seed(0)
    return ResidualCNN(widths=widths, depths=(depth, depth), shortcut=shortcut).eval()


def passes(kind: str, depth: int, shortcut: str) -> tuple[int, int, int]:
    """Forward passes of the first layer while structures are found; how many are, and are not."""
    network = Network.trace(deep(depth, shortcut, (10, 12)), IMAGES)  # in no proof does a layer keep three inputs
    count, forward = 0, nn.Conv2d.forward

    def counted(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += self.in_channels == 3  # the first layer alone reads the image
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Conv2d, "forward", counted)
        structures, refused = structure(kind).find(network)
    return count, len(structures), len(refused)


@pytest.mark.parametrize("shortcut", ["A", "B"])  # with "A" the width of the stream cannot go, and a proof fails
def test_channels_of_a_deep_network_take_as_many_passes_as_of_a_shallow_one(shortcut):
    few, some, refused = passes("channels", 2, shortcut)
    many, more, same = passes("channels", 8, shortcut)
    assert more - some == 2 * 6  # the inner channels of every block
    assert refused == same == (2 if shortcut == "A" else 1)
    assert many == few


def test_blocks_take_passes_as_the_logarithm_of_their_number():
    few, some, _ = passes("blocks", 2, "B")
    many, more, _ = passes("blocks", 8, "B")
    assert more > 3 * some
    assert many - few <= 2 * 3  # two more for every doubling


def test_cuts_of_equal_layers_are_tried_once(monkeypatch):
    tried: list[str] = []
    try_cuts = CouplingGraph._tried_cuts

    def listed(self, module, side, indices, shapes):
        tried.append(f"{type(module).__name__} {shapes} {side}")
        return try_cuts(self, module, side, indices, shapes)

    monkeypatch.setattr(CouplingGraph, "_tried_cuts", listed)
    graph = Network.trace(deep(6, "B"), IMAGES).coupling
    for layer in graph.roots():
        if graph.refusal(layer) is None:
            graph.coupling(layer)
    assert len(tried) == len(set(tried)) < 20


def test_a_copy_is_cut_by_the_graph_of_its_original():
    model = deep(2, "B")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph, example = CouplingGraph(model, ((IMAGES,), {})), ((IMAGES,), {})
    edits = [("layer1.0.conv1", [0, 2]), ("layer2.1.conv1", [7]), ("conv1", [1])]
    copy, again, afresh = deep(2, "B"), deep(2, "B"), deep(2, "B")
    graph.prune(edits, copy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    graph.prune(edits, again)  # the graph stays as it is
    CouplingGraph(afresh, example).prune(edits)
    assert copy.conv1.out_channels == 5
    for other in (again, afresh):
        assert str(other) == str(copy)
        assert all(torch.equal(value, copy.state_dict()[name]) for name, value in other.state_dict().items())


class Flat(nn.Module):
    """Blocks one after another, and a map that is read position by position at the end."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(depth))
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x).tanh())
        return self.head(x.flatten(1))


@pytest.mark.parametrize("steps", [0, 8])  # with none, torch-pruning gives up, and the flow of channels takes over
def test_the_width_of_a_deep_stream_is_followed_to_its_end(steps, monkeypatch):
    monkeypatch.setattr(constants, "MAX_RECURSION_DEPTH", 5)
    monkeypatch.setattr("simprune.trace.guarded.STEPS", steps)
    graph = CouplingGraph(Flat(6).eval(), ((IMAGES[..., :2, :2],), {}))
    head = next(part for part in graph.coupling("stem").slices if part.tensor == "head.weight" and part.dim == 1)
    assert head.indices == tuple(tuple(range(4 * channel, 4 * channel + 4)) for channel in range(4))
    assert graph._graph.traced is (steps > 0)
    assert constants.MAX_RECURSION_DEPTH == 5
    with pytest.raises(NotPrunable, match="would leave"):
        graph.prune([("stem", [0, 1, 2, 3])])
