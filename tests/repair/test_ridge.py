"""One layer fitted: the same weights whether products or rows are kept, and the plain formula's."""

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.repair import problem as module
from simprune.repair.problem import FewRows, Products
from simprune.repair.ridge import RIDGES, UNJUDGED, fit
from simprune.trace.layers import can_be_fitted, matrix_of, patches, positions, stacked

LAYERS = {
    "linear": (lambda bias: nn.Linear(12, 3, bias), (12,)),
    "conv2d": (lambda bias: nn.Conv2d(4, 3, 3, padding=1, bias=bias), (4, 2, 2)),
    "conv1d": (lambda bias: nn.Conv1d(4, 3, 3, stride=2, bias=bias), (4, 7)),
}


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, "auto"])
@pytest.mark.parametrize("count", [2, 3, 8, 60])  # of inputs: fewer rows than weights of an output, and more
@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_those_of_ridge_regression_of_the_change(name, count, ridge, intercept):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make(intercept).double()
    pairs = []
    for size in (count, count):
        x = torch.randn(size, *shape, dtype=torch.float64) + 1
        wanted = 2 * layer(x).detach()
        pairs.append((x, wanted + 0.1 * torch.randn_like(wanted)))
    solved = fit(layer, pairs, ridge, intercept)
    assert solved.ridge in (*RIDGES, UNJUDGED, None)

    rows = torch.cat([stacked(patches(layer, x)) for x, _ in pairs], 1).T
    target = torch.cat([stacked(positions(layer, wanted)) for _, wanted in pairs], 1).T
    means = (rows.mean(0), target.mean(0)) if intercept else (torch.zeros_like(rows[0]), torch.zeros_like(target[0]))
    x, y = rows - means[0], target - means[1]
    present = matrix_of(layer)
    weight, offset = present, torch.zeros_like(means[1]) if layer.bias is None else layer.bias.detach()
    if solved.ridge is not None:
        gram = x.T @ x
        damping = solved.ridge * gram.diagonal().mean() + 1e-12
        change = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), x.T @ (y - x @ present.T))
        weight = present + change.T
        offset = means[1] - weight @ means[0]
    torch.testing.assert_close(solved.matrix, weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(solved.intercept, offset, rtol=1e-6, atol=1e-8)
    left = (target - rows @ weight.T - offset).square().sum() / y.square().sum()
    assert solved.after == pytest.approx(float(left), rel=1e-6, abs=1e-9)
    before = torch.cat([stacked(positions(layer, layer(x).detach())) for x, _ in pairs], 1).T
    assert solved.before == pytest.approx(float((before - target).square().sum() / y.square().sum()), rel=1e-6)


@pytest.mark.parametrize("count", [8, 32, 200])
@pytest.mark.parametrize("seed", range(4))
def test_a_fit_never_makes_other_inputs_worse(count, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(64, 10)
    true = layer.weight.detach() + 0.1 * torch.randn(10, 64, generator=generator)

    def draw(rows):
        x = torch.randn(rows, 64, generator=generator)
        return x, x @ true.T + layer.bias.detach() + 3 * torch.randn(rows, 10, generator=generator)

    solved = fit(layer, [draw(count // 4) for _ in range(4)], "auto")
    x, wanted = draw(4000)
    before = (layer(x) - wanted).square().sum()
    after = (x @ solved.matrix.float().T + solved.intercept.float() - wanted).square().sum()
    assert after <= 1.02 * before


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("wide", [10**6, 1])  # from which number of rows on kernels are in the rows' precision
def test_held_out_errors_of_few_rows_are_those_of_fits_without_them(intercept, wide, monkeypatch):
    monkeypatch.setattr(module, "WIDE", wide)
    torch.manual_seed(0)
    x, y = torch.randn(22, 30) + 2, torch.randn(22, 4)
    layer = nn.Linear(30, 4)
    present = layer.weight.detach().double(), layer.bias.detach().double() * intercept
    errors = FewRows(x, y, intercept).in_turn(present)
    for ridge in (1.0, 1e-2):
        expected = torch.cat(
            [
                FewRows(x[part], y[part], intercept).errors(
                    FewRows(x[others], y[others], intercept).products().solver(present)(ridge)
                )
                for part in torch.arange(22).tensor_split(4)
                for others in [torch.tensor([row for row in range(22) if row not in part])]
            ]
        )
        torch.testing.assert_close(errors(ridge), expected, rtol=1e-3, atol=1e-4)


def test_large_maps_are_fitted_at_as_many_positions_as_suffice_in_whatever_batches():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 3, 3, padding=1), torch.randn(16, 4, 32, 32)
    target = 2 * layer(x).detach() + torch.randn(16, 3, 32, 32)
    whole = fit(layer, [(x, target)], 1e-3)
    some = fit(layer, [(x, target)], 1e-3, inputs=16)
    parts = fit(layer, [(x[:4], target[:4]), (x[4:], target[4:])], 1e-3, inputs=16)
    assert not torch.equal(whole.matrix, some.matrix)
    assert some.after == pytest.approx(whole.after, rel=0.05)
    torch.testing.assert_close(some.matrix, parts.matrix, rtol=1e-4, atol=1e-5)


def test_where_no_change_helps_the_weights_stay_to_the_bit():
    torch.manual_seed(0)
    layer, x = nn.Linear(20, 3), torch.randn(64, 20)
    solved = fit(layer, [(x, layer(x).detach())], "auto")
    assert solved.ridge is None
    assert torch.equal(solved.matrix.float(), layer.weight)
    assert torch.equal(solved.intercept.float(), layer.bias)


def test_batches_in_turn_give_the_fit_of_all_and_the_outputs_products_are_never_formed():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 5000), torch.randn(64, 8)  # 5000 x 5000 products in float64 would take 200 MB
    target = 2 * layer(x).detach()
    whole = fit(layer, [(x, target)], 1e-3)
    parts = fit(layer, ((x[i : i + 4], target[i : i + 4]) for i in range(0, 64, 4)), 1e-3)
    torch.testing.assert_close(whole.matrix, parts.matrix, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.intercept, parts.intercept, rtol=1e-5, atol=1e-6)


def test_half_precision_is_summed_in_full():
    x = torch.full((64, 4), 200.0, dtype=torch.float16) * torch.randn(64, 4, dtype=torch.float16).sign()
    layer = nn.Linear(4, 2).half()
    solved = fit(layer, [(x, x[:, :2])], 1e-6)  # products of 200 x 200 over 64 rows overflow in float16
    torch.testing.assert_close(solved.matrix[:, :2], torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-3)


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


@pytest.mark.parametrize("ridge", [1.0, 1e-3, 1e-4])
def test_wide_layers_are_solved_in_single_precision_where_the_ridge_allows_it(ridge, monkeypatch):
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 3), torch.randn(200, 6) @ torch.randn(6, 40) + 0.05 * torch.randn(200, 40)
    pairs = [(x, torch.randn(200, 3) + x[:, :3])]
    exact = fit(layer, pairs, ridge)
    monkeypatch.setattr(module, "WIDE", 40)
    assert fit(layer, pairs, ridge).after == pytest.approx(exact.after, rel=1e-4)


def test_products_that_rounding_made_indefinite_are_solved_all_the_same():
    gram = torch.diag(torch.tensor([1.0, 1.0, -1e-9], dtype=torch.float64))
    cross, zero = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    weight, _ = Products(9, zero, zero[:1], gram, cross, torch.ones((), dtype=torch.float64)).solver()(0.0)
    torch.testing.assert_close(weight[0, :2], torch.ones(2, dtype=torch.float64))
