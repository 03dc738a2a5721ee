"""One layer fitted: the same weights whether products or rows are kept, and the plain formula's."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.repair.ridge import RIDGES, fit
from simprune.trace.layers import can_be_fitted, patches, positions, stacked

LAYERS = {
    "linear": (lambda bias: nn.Linear(12, 3, bias), (12,)),
    "conv2d": (lambda bias: nn.Conv2d(4, 3, 3, padding=1, bias=bias), (4, 2, 2)),
    "conv1d": (lambda bias: nn.Conv1d(4, 3, 3, stride=2, bias=bias), (4, 7)),
}


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, "auto"])
@pytest.mark.parametrize("count", [2, 3, 8, 60])  # of inputs: fewer rows than weights of an output, and more
@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_those_of_ridge_regression(name, count, ridge, intercept):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make(intercept).double()
    pairs = []
    for size in (count, count):
        x = torch.randn(size, *shape, dtype=torch.float64) + 1
        wanted = layer(x).detach()
        pairs.append((x, wanted + torch.randn_like(wanted)))
    found = fit(layer, pairs, ridge, intercept)
    assert found.ridge in RIDGES

    rows = torch.cat([stacked(patches(layer, x)) for x, _ in pairs], 1).T
    target = torch.cat([stacked(positions(layer, wanted)) for _, wanted in pairs], 1).T
    means = (rows.mean(0), target.mean(0)) if intercept else (torch.zeros_like(rows[0]), torch.zeros_like(target[0]))
    x, y = rows - means[0], target - means[1]
    gram = x.T @ x
    damping = found.ridge * gram.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), x.T @ y).T
    torch.testing.assert_close(found.matrix, weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.intercept, means[1] - weight @ means[0], rtol=1e-6, atol=1e-8)
    left = (y - x @ weight.T).square().sum() / y.square().sum()
    assert found.after == pytest.approx(float(left), rel=1e-6, abs=1e-9)
    made = torch.cat([stacked(positions(layer, layer(x).detach())) for x, _ in pairs], 1).T
    assert found.before == pytest.approx(float((made - target).square().sum() / y.square().sum()), rel=1e-6)


class Standardised(nn.Conv2d):
    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(nn.functional.pad(input, (1, 1, 1, 1)), weight, self.bias)


def test_layers_that_compute_something_else_are_left_alone():
    torch.manual_seed(0)
    assert not can_be_fitted(Standardised(4, 4, 3))
    assert not can_be_fitted(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        Standardised(8, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    calibration = [torch.randn(8, 3, 6, 6) for _ in range(2)]
    plan = sp.plan(sp.analyze(model, calibration), {"macs": 0.6})
    small = sp.apply(plan, model)
    refitted = {each.layer for each in sp.reconstruct(small, plan, model, calibration)}
    assert "2" not in refitted
    assert {"4", "6"} <= refitted
