"""The same inputs in batches of other sizes give the same scores, plan and repair."""

import pytest
import torch
from torch import Tensor, nn

import simprune as sp
from simprune.core.batches import outputs_of
from simprune.zoo.residual import ResidualCNN
from tests.repair.test_segments import lively

SIZES = (8, 32, 7)


class Pair(nn.Module):
    """Two outputs of different length behind one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Linear(6, 24), nn.Linear(24, 24)
        self.one, self.two = nn.Linear(24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.mid(self.stem(x).relu()).relu()
        return self.one(h.mean(1)), self.two(h)


class Positions(nn.Module):
    """Tokens as (positions, inputs, channels), or as (inputs, positions, channels)."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.a, self.b, self.c, self.d = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.transpose(0, 1) if self.first else x)
        h = self.c(self.b(h.relu()).tanh()).relu()
        return self.d(h.mean(0 if self.first else 1))


@pytest.mark.parametrize("method", ["least_squares", "blockwise"])
def test_positions_in_front_of_inputs_change_nothing(method):
    x, outputs = torch.randn(48, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), []
    for first in (False, True):
        torch.manual_seed(0)
        model = Positions(first).eval().double()
        plan = sp.plan(sp.analyze(model, list(x.split(12))), budget={"macs": 0.5})
        small = sp.apply(plan, model)
        sp.reconstruct(small, plan, model, list(x.split(12)), method)
        outputs.append((plan.edits, small(x).detach()))
    assert outputs[0][0] == outputs[1][0]
    torch.testing.assert_close(outputs[0][1], outputs[1][1], rtol=1e-6, atol=1e-6)


CASES = {
    "residual": (lambda: lively(ResidualCNN(in_channels=3, widths=(6, 8), depths=(1, 2))), (3, 6, 6)),
    "two outputs": (Pair, (4, 6)),
}


@pytest.mark.parametrize("name", CASES)
def test_batch_sizes_do_not_matter(name):
    torch.manual_seed(0)
    build, shape = CASES[name]
    model, x = build().eval().double(), torch.randn(96, *shape, dtype=torch.float64)
    results = []
    for size in SIZES:
        batches = list(x.split(size))
        redundancy = sp.analyze(model, batches)
        plan = sp.plan(redundancy, budget={"macs": 0.6}, model=model, calibration=batches, finalists=2)
        small = sp.apply(plan, model)
        sp.reconstruct(small, plan, model, batches, "blockwise")
        with torch.no_grad():
            results.append((redundancy, plan, outputs_of(small(x))))
    first, plan, outputs = results[0]
    assert plan.edits
    for redundancy, other, changed in results[1:]:
        assert other.edits == plan.edits
        assert [part.order for part in redundancy.channels] == [part.order for part in first.channels]
        for part, again in zip(first.channels, redundancy.channels, strict=True):
            assert again.redundancy == pytest.approx(part.redundancy, abs=1e-6)
            assert again.damage == pytest.approx(part.damage, rel=1e-6)
        for block, again in zip(first.blocks, redundancy.blocks, strict=True):
            assert (again.redundancy, again.damage) == pytest.approx((block.redundancy, block.damage), rel=1e-6)
        torch.testing.assert_close(changed, outputs, rtol=1e-6, atol=1e-6)
