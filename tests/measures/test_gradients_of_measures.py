"""Measures with gradients: they are those of finite differences, and the value is that of the measure."""

import pytest
import torch

import simprune as sp

SMOOTH = [
    "angular_shape_metric", "cka", "cka_debiased", "distance_correlation", "linear_regression", "mean_squared_cca",
    "orthogonal_procrustes", "procrustes_size_shape", "svcca",
]  # fmt: skip


WIDE = ["angular_shape_metric", "cka", "cka_debiased", "distance_correlation", "orthogonal_procrustes"]
CASES = [*((name, rows, 5) for name in SMOOTH for rows in (12, 40)), *((name, 6, 20) for name in WIDE)]


@pytest.mark.parametrize("name, rows, width", CASES)
def test_gradients_are_those_of_finite_differences(name, rows, width):
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(rows, size, dtype=torch.float64, generator=generator) for size in (width, 7))
    measure = sp.measures.get(name)
    X.requires_grad_()
    value = measure.with_gradients(X, Y)
    assert float(value.detach()) == pytest.approx(measure(X.detach(), Y), rel=1e-5)
    value.backward()
    step = torch.zeros_like(X)
    step[3, 2] = 1e-3 if measure.keeps_float32 else 1e-6
    with torch.no_grad():
        sides = [float(measure.with_gradients(X + sign * step, Y)) for sign in (1, -1)]
    slope = (sides[0] - sides[1]) / (2 * float(step[3, 2]))
    assert float(X.grad[3, 2]) == pytest.approx(slope, rel=0.05, abs=2e-4)


def test_many_rows_take_many_tiles_and_keep_their_gradients():
    X, Y = torch.randn(1500, 40), torch.randn(1500, 40)
    X.requires_grad_()
    sp.measures.get("cka_debiased").with_gradients(X, Y).backward()
    assert bool(X.grad.isfinite().all()) and float(X.grad.abs().max()) > 0
