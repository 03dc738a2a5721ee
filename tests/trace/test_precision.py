"""Half precision: repairs help as in float32. What a subclass of nn.Linear computes decides whether it is fitted."""

import copy

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, fingerprint
from simprune.repair.gauss_newton import fit_block
from simprune.trace.layers import can_be_fitted, joint_moments
from simprune.trace.precision import InSingle, require_finite, to_single
from tests.architectures.language_models import batch, make

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("method", ["least_squares", "blockwise"])
def test_repair_finds_the_same_layers_and_helps_in_bfloat16(method):
    refitted = {}
    for dtype in DTYPES:
        model, data = make("falcon", dtype), [batch(24)]
        redundancy = sp.analyze(model, data, structures=("blocks",))
        plan = sp.plan(redundancy, budget={"params": 0.85})
        small = sp.apply(plan, model)
        refits = sp.reconstruct(small, plan, model, data, method=method)
        assert all(parameter.dtype == dtype for parameter in small.parameters())
        assert refits and all(torch.isfinite(torch.tensor([r.before, r.after])).all() for r in refits)
        assert sum(r.after for r in refits) < sum(r.before for r in refits)
        refitted[dtype] = {r.layer for r in refits}
    assert refitted[torch.float32] == refitted[torch.bfloat16]


def test_a_block_in_bfloat16_is_fitted_in_float32():
    block, x = nn.Sequential(nn.Linear(3, 2)).bfloat16(), torch.randn(256, 3).bfloat16()
    before, after = fit_block(block, {"0": None}, [(((x,), {}), x[:, :2], 1.0)])
    assert after < 1e-3 * before
    assert block[0].weight.dtype == torch.bfloat16


def test_moments_of_half_precision_are_those_of_float32():
    x = torch.randn(1, 4, 5000).bfloat16() + 3
    half, single = joint_moments(x), joint_moments(x.float())
    torch.testing.assert_close(half.scatter, single.scatter, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(half.mean, single.mean, rtol=1e-6, atol=1e-6)


def test_tied_parameters_stay_tied_in_float32():
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4, dtype=torch.bfloat16))
    model[1].weight = model[0].weight
    assert to_single(model)[1].weight is model[0].weight and model[0].weight.dtype == torch.float32


class Product(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T if self.bias is None else x @ self.weight.T + self.bias


class Standardised(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class Failing(nn.Linear):
    def forward(self, x, scale):
        return scale * super().forward(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind, fits", [(Product, True), (Standardised, False), (Failing, False)])
def test_a_subclass_of_linear_is_fitted_if_its_forward_is_the_product(kind, fits, dtype):
    assert can_be_fitted(kind(6, 5, dtype=dtype)) is fits


def test_what_is_no_number_stops_with_the_name_of_its_layer():
    with pytest.raises(ValueError, match=r"the output of layer\.1 has nan"):
        require_finite(torch.tensor([1.0, float("nan")]), "the output of layer.1")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(32, 4)
    edit = sp.Plan((Edit("channels", "0", (1,), 8),), fingerprint(model), describe(example_of(x)))
    small = sp.apply(edit, model)
    with pytest.raises(ValueError, match="the input of 2 in the pruned network has nan"):
        sp.reconstruct(small, edit, model, [x.index_fill(0, torch.tensor([3]), float("inf"))])


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Conv1d(4, 3, 2), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 2, 2, groups=1)),
        lambda: nn.GRU(6, 5),
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
    ],
)
def test_a_half_model_runs_in_single_without_a_copy_and_gives_what_a_single_one_gives(make):
    model = make().to(torch.bfloat16).eval()
    x = torch.randn(2, 4, 6)
    with torch.no_grad():
        wanted = to_single(copy.deepcopy(model))(x)
        with InSingle():
            output = model(x)
    output, wanted = (value[0] if isinstance(value, tuple) else value for value in (output, wanted))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, wanted)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
