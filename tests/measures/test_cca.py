"""The CCA family against subspace angles, projectors and whitening in plain float64, and its declared limits."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from simprune import measures
from simprune.measures import DegenerateWarning, UndefinedWarning, _products

SHAPES = [(12, 3, 3), (40, 3, 9), (40, 9, 3), (40, 17, 12), (60, 1, 4)]


def data(count, width, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset


def centred(X):
    return X - X.mean(0)


def correlations(X, Y):
    return np.cos(subspace_angles(centred(X), centred(Y)))[::-1]  # scipy: largest angle first


def mean_cca(X, Y):
    return correlations(X, Y).mean()


def mean_squared_cca(X, Y):
    P, Q = (centred(Z) @ np.linalg.pinv(centred(Z)) for Z in (X, Y))
    return (P * Q).sum() / min(np.linalg.matrix_rank(centred(Z)) for Z in (X, Y))


def cca_angular_distance(X, Y):
    return math.acos(correlations(X, Y).sum() / math.sqrt(X.shape[1] * Y.shape[1]))


def leading(X, threshold):
    U, s, _ = np.linalg.svd(centred(X), full_matrices=False)
    count = next(k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() >= threshold * (s**2).sum())
    return (U * s)[:, :count]


def svcca(X, Y, threshold=0.99):
    return mean_cca(leading(X, threshold), leading(Y, threshold))


def whitened(X):
    values, vectors = np.linalg.eigh(centred(X).T @ centred(X))
    return centred(X) @ vectors @ np.diag(values**-0.5)


def pwcca(X, Y):
    """Weights of the first argument, one variate and one unit at a time."""
    U, rho, _ = np.linalg.svd(whitened(X).T @ whitened(Y), full_matrices=False)
    variates = whitened(X) @ U
    alpha = [sum(abs(h @ x) for x in centred(X).T) for h in variates.T]
    return np.average(rho, weights=alpha)


REFERENCES = {
    "mean_cca": mean_cca,
    "mean_squared_cca": mean_squared_cca,
    "cca_angular_distance": cca_angular_distance,
    "svcca": svcca,
    "pwcca": pwcca,
}


@pytest.mark.parametrize("id", REFERENCES)
@pytest.mark.parametrize("count, width, other", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_equals_the_formula(id, count, width, other, offset):
    X, Y = data(count, width, 0, offset), data(count, other, 1, offset)
    Y[:, : min(width, other)] += 2 * X[:, : min(width, other)]
    assert measures.get(id)(X, Y) == pytest.approx(REFERENCES[id](X, Y), rel=1e-9)


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 1.0])
def test_svcca_keeps_the_fewest_components_that_reach_the_threshold(threshold):
    X, Y = data(50, 12), data(50, 8, 1)
    expected = svcca(X, Y, threshold) if threshold < 1 else mean_cca(X, Y)
    assert measures.get("svcca", threshold=threshold)(X, Y) == pytest.approx(expected, rel=1e-9)


def test_svcca_keeps_more_than_one_component_of_large_representations():
    X = 100 * np.linalg.qr(centred(data(200, 10)))[0]
    kept = measures.get("svcca").prepare(X).data.shape[1]
    assert kept == 10
    assert measures.get("svcca", threshold=0.5).prepare(X).data.shape[1] == 5


def test_sides_of_pwcca():
    X, Y = data(50, 6), data(50, 9, 1)
    first, second = measures.get("pwcca")(X, Y), measures.get("pwcca", weights="second")(X, Y)
    assert first == pytest.approx(pwcca(X, Y))
    assert second == pytest.approx(pwcca(Y, X))
    assert abs(first - second) > 1e-4
    assert measures.get("pwcca", weights="mean")(X, Y) == pytest.approx((first + second) / 2)
    assert measures.get("pwcca", weights="smaller")(X, Y) == pytest.approx(first)
    assert measures.get("pwcca", weights="smaller")(Y, X) == pytest.approx(first)


def test_pwcca_ignores_the_basis_of_the_side_that_is_not_weighted():
    X, Y = data(50, 6), data(50, 9, 1)
    assert measures.get("pwcca")(X, Y @ data(9, 9, 2) + 3) == pytest.approx(pwcca(X, Y), rel=1e-9)


@pytest.mark.parametrize("weights", ["first", "second", "mean"])
def test_pwcca_of_a_shared_subspace_does_not_depend_on_how_it_is_written(weights):
    measure = measures.get("pwcca", weights=weights)
    turned = measures.get("pwcca", weights={"first": "second", "second": "first"}.get(weights, weights))
    shared = data(50, 4)  # four correlations of 1, whose variates any SVD may return in any rotation
    X, Y = np.hstack([shared, data(50, 3, 1)]), np.hstack([shared, data(50, 5, 2)])
    assert measure(X, Y) == pytest.approx(turned(Y, X), rel=1e-9)
    assert measure(X[:, ::-1], Y[:, ::-1] + 1) == pytest.approx(measure(X, Y), rel=1e-9)
    X, Y = data(24, 12, 1), data(24, 20, 2)  # nine are 1 because there are only 23 directions
    assert measure(X, Y) == pytest.approx(turned(Y, X), rel=1e-9)


def test_denominator_decides_what_dead_units_count():
    X, Y = data(50, 4), data(50, 8, 1)
    X = np.hstack([X, np.zeros((50, 4))])
    by_rank, by_dim = measures.get("mean_cca"), measures.get("mean_cca", denominator="dim")
    assert by_rank(X, Y) == pytest.approx(mean_cca(X[:, :4], Y))
    assert by_dim(X, Y) == pytest.approx(mean_cca(X[:, :4], Y) / 2)
    assert by_dim(X, X) == pytest.approx(0.5)


@pytest.mark.parametrize("id", REFERENCES)
def test_copies_and_sums_of_units_change_no_span(id):
    X, Y = data(60, 5), data(60, 4, 1)
    more = np.hstack([X, X[:, :2], X @ data(5, 3, 2)])
    if id in ("svcca", "pwcca"):  # these depend on more than the span
        more = np.hstack([X, 0 * X[:, :2]])
    assert measures.get(id)(more, Y) == pytest.approx(measures.get(id)(X, Y), rel=1e-9)


@pytest.mark.parametrize("id", [*REFERENCES, "linear_regression"])
def test_too_few_rows_are_said(id):
    X, Y = data(12, 11), data(12, 3, 1)
    with pytest.warns(DegenerateWarning, match=f"{id}: 12 rows of rank 11 span every direction"):
        measures.get(id, **({"threshold": 1.0} if id == "svcca" else {}))(X, Y)
    for share in (0.9, 1.0):  # fewer units than that are not commented on: warnings are errors here
        measures.get(id)(X[:, :10] * share, Y)


def test_without_rows_to_spare_any_two_are_equal():
    X, Y = data(12, 20), data(12, 3, 1)
    with pytest.warns(DegenerateWarning):
        assert measures.get("mean_cca")(X, Y) == pytest.approx(1)


@pytest.mark.parametrize("widths", [(3, 4, 5), (20, 25, 28)])
@pytest.mark.parametrize("tile", [1, 10_000])
def test_every_route_of_the_matrix_equals_the_formula(widths, tile, monkeypatch):
    monkeypatch.setattr(_products, "TILE", tile)
    layers = {str(width): data(31, width, width, 10.0) for width in widths}
    values = measures.matrix("mean_squared_cca", layers).values
    expected = [[mean_squared_cca(X, Y) for Y in layers.values()] for X in layers.values()]
    assert values == pytest.approx(np.array(expected), rel=1e-9)


def test_the_angle_is_a_metric_and_exact_when_small():
    layers = {str(seed): data(30, 3 + seed, seed) for seed in range(5)}
    d = measures.matrix("cca_angular_distance", layers).values
    assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-12).all()
    assert np.diag(d).max() < 1e-14
    X = data(60, 4)
    near = X + 1e-6 * data(60, 4, 1)
    angles = subspace_angles(centred(X), centred(near))
    expected = 2 * math.asin(math.sqrt((2 * np.sin(angles / 2) ** 2).sum() / 4 / 2))
    assert measures.get("cca_angular_distance")(X, near) == pytest.approx(expected, rel=1e-7)


def test_float32_with_an_offset_keeps_its_digits():
    X, Y = (torch.from_numpy(data(200, 8, seed, 1e3)).float() for seed in (0, 1))
    Y = Y + X
    for id, reference in REFERENCES.items():
        expected = reference(X.double().numpy(), Y.double().numpy())
        assert measures.get(id)(X, Y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "id, hyper, message",
    [
        ("mean_cca", {"denominator": "units"}, '"rank" or "dim"'),
        ("svcca", {"threshold": 0.0}, "above 0 and at most 1"),
        ("svcca", {"threshold": 1.1}, "above 0 and at most 1"),
        ("pwcca", {"weights": "both"}, '"first", "second", "smaller" or "mean"'),
    ],
)
def test_bad_hyperparameters_are_refused(id, hyper, message):
    with pytest.raises(ValueError, match=message):
        measures.get(id, **hyper)


@pytest.mark.parametrize("id", REFERENCES)
def test_a_constant_representation_has_no_value(id):
    with pytest.warns(UndefinedWarning, match="same for all inputs"):
        assert math.isnan(measures.get(id)(np.full((9, 2), 0.3), data(9, 3)))
