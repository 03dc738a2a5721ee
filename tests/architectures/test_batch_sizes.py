"""The same inputs in batches of other sizes give the same scores, plan and repair."""

import pytest
import torch
from torch import Tensor, nn

import simprune as sp
from simprune.core.batches import outputs_of
from simprune.zoo.residual import ResidualCNN
from tests.repair.test_segments import lively

SIZES = (8, 16, 32, 7)


class Pair(nn.Module):
    """Two outputs of different length behind one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid = nn.Linear(6, 24), nn.Linear(24, 24)
        self.one, self.two = nn.Linear(24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.mid(self.stem(x).relu()).relu()
        return self.one(h.mean(1)), self.two(h)


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
