"""Parameters and buffers that modules add or multiply themselves: they go with their channels, in every layout."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import simprune as sp
from simprune import bundle
from simprune.structures import structure
from simprune.trace.network import Network

CHANNELS = 8
INPUTS = {"maps": (3, 6, 6), "last": (6, 6, 3), "series": (3, 6), "tokens": (6, 3)}
SHAPES = {  # of what is combined with activations of 8 channels; a 6 is a number of positions
    "maps": [(8, 1, 1), (1, 8, 1, 1), (8, 6, 6), (1, 8, 6, 6), (1, 8, 6, 1), (1, 1, 6, 6), (6,)],
    "last": [(8,), (1, 6, 6, 8), (6, 1, 8)],
    "series": [(8, 6), (1, 8, 1)],
    "tokens": [(8,), (1, 6, 8), (6, 1)],
}
CASES = [(layout, shape) for layout, shapes in SHAPES.items() for shape in shapes]


def store(module: nn.Module, name: str, value: Tensor, how: str) -> None:
    if how == "parameter":
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value > 0 if how == "flags" else value, persistent=how != "not saved")


class Shifted(nn.Module):
    """A stored tensor between two layers."""

    def __init__(self, layout: str, shape: tuple[int, ...], how: str) -> None:
        super().__init__()
        self.layout = layout
        kind = {"maps": nn.Conv2d, "series": nn.Conv1d}.get(layout)
        self.first = nn.Linear(3, CHANNELS) if kind is None else kind(3, CHANNELS, 3, padding=1)
        self.second = nn.Linear(CHANNELS, 5) if kind is None else kind(CHANNELS, 5, 3, padding=1)
        store(self, "stored", torch.randn(shape), how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.where(self.stored, x, -x) if self.stored.dtype == torch.bool else x * self.stored
        return self.second(F.relu(x + 1))


@pytest.mark.parametrize("how", ["parameter", "buffer", "flags"])
def test_a_stored_tensor_goes_with_its_channels_or_is_the_same_for_all(how):
    torch.manual_seed(0)
    for layout, shape in CASES:
        network = Network.trace(Shifted(layout, shape, how).eval(), torch.randn(4, *INPUTS[layout]))
        [group], _ = structure("channels").find(network)  # each removal was proven against readers that ignore it
        parts = {part.dim: part.indices for part in group.slices if part.tensor == "stored"}
        of_channels = {shape.index(CHANNELS): tuple((index,) for index in range(CHANNELS))} if CHANNELS in shape else {}
        assert group.size == CHANNELS and parts == of_channels, (layout, shape)


class Embedded(nn.Module):
    """Maps and tokens with positions that are learned, computed, enlarged, cut to size, or the sum of two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mid, self.patch = (
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 12, 2, 2),
        )  # fmt: skip
        self.hidden, self.head = nn.Linear(12, 9), nn.Linear(9, 3)
        self.norm = nn.BatchNorm2d(8)
        store(self, "coarse", torch.randn(1, 8, 3, 3), "parameter")
        store(self, "scale", torch.rand(1, 8, 1, 1) + 0.5, "not saved")
        store(self, "rows", torch.randn(1, 10, 6, 1), "parameter")
        store(self, "columns", torch.randn(1, 10, 1, 6), "parameter")
        store(self, "window", torch.rand(1, 1, 6, 6), "parameter")
        store(self, "positions", torch.randn(1, 20, 12), "buffer")
        store(self, "grid", torch.randn(9, 3, 3), "parameter")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)) + F.interpolate(self.coarse, x.shape[2:], mode="bilinear")
        x = self.mid(F.relu(x * self.scale)) + (self.rows + self.columns)
        x = self.patch(F.relu(x) * self.window).flatten(2).mT
        x = self.hidden(F.relu(x + self.positions[:, : x.shape[1]])) + self.grid.flatten(1).T
        return self.head(F.relu(x).mean(1))


def embedded() -> nn.Module:
    torch.manual_seed(0)
    return Embedded().eval()


def test_positions_are_pruned_on_the_whole_path(tmp_path):
    model, x = embedded(), torch.randn(6, 3, 6, 6)
    state = copy.deepcopy(model.state_dict())
    redundancy = sp.analyze(model, [x], structures=["channels"], score="magnitude")
    groups = {entry.name: entry.group for entry in redundancy.channels}
    assert {name: group.size for name, group in groups.items()} == {"conv": 8, "mid": 10, "patch": 12, "hidden": 9}
    plan = sp.plan(redundancy, {"params": 0.6}, planner="uniform")
    small, masked = sp.apply(plan, model), copy.deepcopy(model)
    for edit in plan.of_kind("channels"):
        for unit in edit.indices:
            structure("channels").ignore(masked, groups[edit.name], unit)
    assert {edit.name for edit in plan.of_kind("channels")} == groups.keys()
    torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    sp.reconstruct(small, plan, model, [x])
    small.train()(x).sum().backward()
    output = small.eval()(x)
    bundle.save(tmp_path / "small", SimpleNamespace(model=small, plan=plan, report={"simprune": "0.1.0", "stages": []}))
    assert torch.equal(bundle.load(tmp_path / "small", embedded).eval()(x), output)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
