"""Alignment by rotation and by regression against scipy's Procrustes, explicit rotations and least squares."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, orthogonal_procrustes
from scipy.spatial import procrustes

from simprune import measures
from simprune.measures import DegenerateWarning, _products

SHAPES = [(12, 3, 3), (12, 3, 40), (12, 50, 40), (30, 9, 5), (30, 17, 12), (5, 4, 7)]


def data(count, width, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset


def centred(X):
    return X - X.mean(0)


def padded(X, Y):
    width = max(X.shape[1], Y.shape[1])
    return (np.pad(Z, ((0, 0), (0, width - Z.shape[1]))) for Z in (X, Y))


def raw(X, Y):
    """The distance after the rotation that scipy finds, carried out."""
    X, Y = padded(X, Y)
    return np.linalg.norm(X @ orthogonal_procrustes(X, Y)[0] - Y)


def size_shape(X, Y):
    return raw(centred(X), centred(Y))


def unit(X):
    return centred(X) / np.linalg.norm(centred(X))


def normalized(X, Y):
    return raw(unit(X), unit(Y))


def bures(X, Y):
    """scipy's disparity is what is left after rotation and scaling: 1 - cosine^2."""
    return math.sqrt(1 - procrustes(*padded(X, Y))[2])


def angular(X, Y):
    return math.acos(bures(X, Y))


def partly_white(X, alpha):
    X = centred(X)
    root = fractional_matrix_power(X.T @ X, -0.5)
    return X @ (alpha * np.eye(X.shape[1]) + (1 - alpha) * root)


def regression(X, Y):
    X, Y = centred(X), centred(Y)
    residual = X - Y @ np.linalg.lstsq(Y, X)[0]
    return 1 - (residual**2).sum() / (X**2).sum()


def aligned_cosine(X, Y):
    X, Y = padded(X, Y)
    X = X @ orthogonal_procrustes(X, Y)[0]
    return np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(X, Y, strict=True)])


REFERENCES = {
    "procrustes_raw": raw,
    "procrustes_size_shape": size_shape,
    "orthogonal_procrustes": normalized,
    "normalized_bures": bures,
    "angular_shape_metric": angular,
    "aligned_cosine": aligned_cosine,
}


@pytest.mark.parametrize("id", REFERENCES)
@pytest.mark.parametrize("count, width, other", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_equals_the_formula(id, count, width, other, offset):
    X, Y = data(count, width, 0, offset), data(count, other, 1, offset)
    assert measures.get(id)(X, Y) == pytest.approx(REFERENCES[id](X, Y), rel=1e-9)


@pytest.mark.parametrize("count, width, other", [(12, 3, 3), (30, 9, 5), (30, 12, 17)])
def test_regression_equals_least_squares(count, width, other):
    X, Y = data(count, width, 0, 100.0), data(count, other, 1, -5.0)
    expected = pytest.approx(regression(X, Y), rel=1e-9)
    assert measures.get("linear_regression")(X, Y) == expected
    assert measures.get("linear_regression", target="second")(Y, X) == expected
    assert measures.get("linear_regression")(X, Y @ data(other, other, 2) + 3) == expected
    assert measures.get("linear_regression")(Y, X) != expected


@pytest.mark.parametrize("target", ["first", "second"])
@pytest.mark.parametrize("widths", [(3, 4, 5), (20, 25, 28)])
@pytest.mark.parametrize("tile", [1, 10_000])
def test_every_route_of_the_regression_matrix(target, widths, tile, monkeypatch):
    monkeypatch.setattr(_products, "TILE", tile)
    layers = {str(width): data(31, width, width, 10.0) for width in widths}
    values = measures.matrix("linear_regression", layers, target=target).values
    expected = np.array([[regression(X, Y) for Y in layers.values()] for X in layers.values()])
    assert values == pytest.approx(expected if target == "first" else expected.T, rel=1e-9)


def test_dead_units_neither_help_nor_break_a_regression():
    X, Y = data(30, 6), data(30, 4, 1)
    dead = np.hstack([Y, np.zeros((30, 2)), Y[:, :1]])
    assert measures.get("linear_regression")(X, dead) == pytest.approx(regression(X, Y), rel=1e-9)
    assert measures.get("linear_regression")(X, np.ones((30, 3))) == 0


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("count, width, other", [(12, 3, 3), (30, 9, 5)])
def test_partial_whitening_equals_the_formula(alpha, count, width, other):
    X, Y = data(count, width, 0, 3.0), data(count, other, 1)
    expected = angular(partly_white(X, alpha), partly_white(Y, alpha))
    assert measures.get("partial_whitening_shape_metric", alpha=alpha)(X, Y) == pytest.approx(expected, rel=1e-9)


def test_partial_whitening_ends_in_procrustes_and_in_cca():
    X, Y = data(40, 7), data(40, 5, 1)
    ends = {1.0: "angular_shape_metric", 0.0: "cca_angular_distance"}
    for alpha, id in ends.items():
        whitening = measures.get("partial_whitening_shape_metric", alpha=alpha)
        assert whitening(X, Y) == pytest.approx(measures.get(id)(X, Y), rel=1e-9)
        assert whitening.invariant_to == measures.get(id).invariant_to


def test_whitening_leaves_dead_units_alone():
    X, Y = data(40, 7), data(40, 5, 1)
    whitening = measures.get("partial_whitening_shape_metric", alpha=0.3)
    assert whitening(np.hstack([X, np.ones((40, 3))]), Y) == pytest.approx(whitening(X, Y), rel=1e-9)


@pytest.mark.parametrize("id", ["procrustes_raw", "procrustes_size_shape", "orthogonal_procrustes"])
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("width", [6, 50])
def test_small_distances_keep_their_digits(id, size, width):
    X = data(20, width)
    Y = X @ np.linalg.qr(data(width, width, 2))[0] + size * data(20, width, 1)
    assert measures.get(id)(X, Y) == pytest.approx(REFERENCES[id](X, Y), rel=3e-15 / size + 1e-9)


@pytest.mark.parametrize(
    "id", ["procrustes_raw", "procrustes_size_shape", "orthogonal_procrustes", "angular_shape_metric"]
)
def test_metrics_obey_the_triangle_inequality_at_any_widths(id):
    layers = {str(seed): data(12, 2 + 5 * seed, seed) for seed in range(5)}
    d = measures.matrix(id, layers).values
    assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-12).all()


def test_bures_is_the_fidelity_of_gram_matrices():
    X, Y = centred(data(6, 9)), centred(data(6, 8, 1))
    K, L = X @ X.T + 1e-14 * np.eye(6), Y @ Y.T
    values = np.linalg.eigvals(K @ L).real.clip(min=0)
    expected = np.sqrt(values).sum() / math.sqrt(np.trace(K) * np.trace(L))
    assert measures.get("normalized_bures")(X, Y) == pytest.approx(expected, rel=1e-6)


def test_what_is_held_has_no_more_columns_than_rows():
    assert measures.get("orthogonal_procrustes").prepare(data(20, 200)).data.rows.shape == (20, 20)
    assert measures.get("aligned_cosine").prepare(data(20, 200)).data.rows.shape == (20, 20)
    assert measures.get("linear_regression").prepare(data(200, 20)).data.values[0].shape == (200, 20)


def test_zero_rows_have_no_cosine():
    X, Y = data(20, 5), data(20, 7, 1)
    X[3], Y[[3, 8]] = 0, 0
    alive = [i for i in range(20) if i not in (3, 8)]
    for id in ("aligned_cosine", "permutation_aligned_cosine"):
        with pytest.warns(DegenerateWarning) as caught:
            result = measures.get(id)(X, Y)
        said = [str(each.message).split(",")[0] for each in caught]
        assert said == [f"{id}: {count} of 20 rows are zero" for count in (1, 2)]
        # rows that are zero on one side do not influence the alignment either
        assert result == pytest.approx(measures.get(id)(X[alive], Y[alive]), rel=1e-9)


def test_aligned_cosine_ignores_directions_without_a_counterpart():
    shared, mine, theirs = np.linalg.qr(data(20, 6))[0].reshape(20, 3, 2).transpose(1, 0, 2)
    values = []
    for seed in range(3):  # the rotation of `mine` onto `theirs` is arbitrary; the value must not be
        turn = np.linalg.qr(data(4, 4, seed))[0]
        values.append(measures.get("aligned_cosine")(np.hstack([shared, mine]) @ turn, np.hstack([shared, theirs])))
    assert values == pytest.approx([values[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("id", ["orthogonal_procrustes", "angular_shape_metric", "normalized_bures"])
def test_float32_with_an_offset_keeps_its_digits(id):
    X, Y = (torch.from_numpy(data(200, 8, seed, 1e3)).float() for seed in (0, 1))
    expected = REFERENCES[id](X.double().numpy(), (X + Y).double().numpy())
    assert measures.get(id)(X, X + Y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "alpha, message", [(-0.1, "from 0 to 1"), (1.1, "from 0 to 1"), (math.nan, "alpha must be float, got nan")]
)
def test_bad_hyperparameters_are_refused(alpha, message):
    with pytest.raises(ValueError, match=message):
        measures.get("partial_whitening_shape_metric", alpha=alpha)
    with pytest.raises(ValueError, match='"first" or "second"'):
        measures.get("linear_regression", target="both")
    with pytest.raises(ValueError, match="needs alpha"):
        measures.get("partial_whitening_shape_metric")
