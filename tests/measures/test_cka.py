"""CKA against the textbook formulas in plain float64 numpy, and where other libraries go wrong."""

import math

import numpy as np
import pytest
import torch

from simprune import measures
from simprune.measures import _products

SHAPES = [(12, 3, 3), (12, 3, 40), (12, 50, 40), (30, 5, 29), (30, 14, 16), (5, 4, 7), (4, 2, 9)]


def data(count, width, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset


def biased(K, L):
    """tr(KHLH) / sqrt(tr(KHKH) tr(LHLH))"""
    H = np.eye(len(K)) - 1 / len(K)
    hsic = lambda A, B: np.trace(A @ H @ B @ H)  # noqa: E731
    return hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))


def unbiased(K, L):
    """The ratio of the three-term estimators of Song et al."""
    n = len(K)

    def hsic(A, B):
        A, B = A - np.diag(np.diag(A)), B - np.diag(np.diag(B))
        middle = A.sum() * B.sum() / ((n - 1) * (n - 2))
        return (np.trace(A @ B) + middle - 2 / (n - 2) * (A @ B).sum()) / (n * (n - 3))

    return hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))


def linear(X):
    X = X - X.mean(0)
    return X @ X.T


def gaussian(X, threshold):
    squares = ((X[:, None] - X[None]) ** 2).sum(-1)
    return np.exp(-squares / (2 * threshold**2 * np.median(squares)))


@pytest.mark.parametrize("count, width, other", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_equals_the_formula(count, width, other, offset):
    X, Y = data(count, width, 0, offset), data(count, other, 1, offset)
    tolerance = {"rel": 1e-9, "abs": 1e-11}
    assert measures.get("cka")(X, Y) == pytest.approx(biased(linear(X), linear(Y)), **tolerance)
    assert measures.get("cka_debiased")(X, Y) == pytest.approx(unbiased(linear(X), linear(Y)), **tolerance)
    angle = math.acos(biased(linear(X), linear(Y)))
    assert measures.get("cka_angular")(X, Y) == pytest.approx(angle, **tolerance)


@pytest.mark.parametrize("count, width, other", SHAPES)
@pytest.mark.parametrize("threshold", [0.2, 1.0])
def test_rbf_equals_the_formula(count, width, other, threshold):
    X, Y = data(count, width), data(count, other, 1)
    K, L = gaussian(X, threshold), gaussian(Y, threshold)
    rbf = measures.get("cka_rbf", threshold=threshold)
    assert rbf(X, Y) == pytest.approx(biased(K, L), rel=1e-9)
    rbf = measures.get("cka_rbf", threshold=threshold, debiased=True)
    assert rbf(X, Y) == pytest.approx(unbiased(K, L), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("id, formula", [("cka", biased), ("cka_debiased", unbiased)])
@pytest.mark.parametrize("widths", [(3, 4, 5), (20, 25, 28), (40, 50, 60), (3, 25, 60)])
@pytest.mark.parametrize("tile", [1, 10_000])
def test_every_route_of_the_matrix_equals_the_formula(id, formula, widths, tile, monkeypatch):
    monkeypatch.setattr(_products, "TILE", tile)
    layers = {str(width): data(60, width, width, 10.0) for width in widths}
    values = measures.matrix(id, layers).values
    expected = [[formula(linear(X), linear(Y)) for Y in layers.values()] for X in layers.values()]
    assert values == pytest.approx(np.array(expected), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("width", [4, 60])
def test_float32_with_an_offset_keeps_its_digits(width):
    X, Y = (torch.from_numpy(data(200, width, seed, 1e3)).float() for seed in (0, 1))
    Y = Y + X
    for id, formula in (("cka", biased), ("cka_debiased", unbiased)):
        expected = formula(linear(X.double().numpy()), linear(Y.double().numpy()))
        assert measures.get(id)(X, Y) == pytest.approx(expected, abs=1e-5)


def test_debiasing_removes_the_bias_of_wide_representations():
    X, Y = (torch.randn(64, 4096, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert measures.get("cka")(X, Y) > 0.95
    assert abs(measures.get("cka_debiased")(X, Y)) < 0.05


def test_equally_distant_inputs_have_no_debiased_value():
    X = torch.eye(9)
    for measure in (measures.get("cka_debiased"), measures.get("cka_rbf", debiased=True)):
        with pytest.warns(measures.UndefinedWarning, match="equally far apart"):
            assert math.isnan(measure(X, data(9, 3)))
    assert measures.get("cka")(X, X) == pytest.approx(1)


def test_rbf_of_mostly_equal_inputs_is_undefined():
    X = data(9, 3)
    X[:8] = X[0]
    with pytest.warns(measures.UndefinedWarning, match="median"):
        assert math.isnan(measures.get("cka_rbf")(X, data(9, 3, 1)))
    assert measures.get("cka")(X, X) == pytest.approx(1)


def test_the_angle_is_a_metric():
    layers = {str(seed): data(20, 4, seed) for seed in range(6)}
    d = measures.matrix("cka_angular", layers).values
    assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-12).all()


def test_what_is_held_is_the_smaller_of_gram_matrix_and_rows():
    measure = measures.get("cka")
    assert measure.prepare(data(40, 5)).data.values.rows.shape == (40, 5)
    assert measure.prepare(data(40, 200)).data.values.shape == (40, 40)


@pytest.mark.parametrize("id", ["cka", "cka_debiased", "cka_angular", "cka_rbf"])
@pytest.mark.parametrize("count", [5, 24, 49, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_does_not_give_a_constant_representation_a_value(id, count, dtype):
    X = torch.linspace(0.1, 1e3, 6, dtype=dtype).expand(count, 6)
    with pytest.warns(measures.UndefinedWarning, match=f"{id} is undefined here"):
        assert math.isnan(measures.get(id)(X, data(count, 3)))
