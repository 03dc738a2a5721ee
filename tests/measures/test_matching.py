"""Matching of units against every permutation, every pair of subsets, and a plain linear program."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from simprune import measures

SMALL = [(12, 4, 4), (12, 3, 5), (4, 5, 2), (9, 1, 4)]
LARGE = [(20, 17, 17), (20, 30, 12), (8, 12, 30)]


def data(count, width, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset


def centred(X):
    return X - X.mean(0)


def padded(X, Y):
    width = max(X.shape[1], Y.shape[1])
    return (np.pad(Z, ((0, 0), (0, width - Z.shape[1]))) for Z in (X, Y))


def best_order(X, Y):
    """Y with its units in the order nearest to X: all orders tried if they are few."""
    X, Y = padded(X, Y)
    if X.shape[1] <= 5:
        orders = itertools.permutations(range(X.shape[1]))
        return X, min((Y[:, list(order)] for order in orders), key=lambda Z: ((X - Z) ** 2).sum())
    squares = ((X[:, :, None] - Y[:, None, :]) ** 2).sum(0)
    return X, Y[:, linear_sum_assignment(squares)[1]]


def permutation_procrustes(X, Y):
    X, Y = best_order(X, Y)
    return np.linalg.norm(X - Y)


def permutation_procrustes_centred(X, Y):
    return permutation_procrustes(centred(X), centred(Y))


def permutation_angular(X, Y):
    X, Y = best_order(*(centred(Z) / np.linalg.norm(centred(Z)) for Z in (X, Y)))
    return math.acos((X * Y).sum())


def permutation_aligned_cosine(X, Y):
    X, Y = best_order(X, Y)
    return np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(X, Y, strict=True)])


def transport(cost):
    """Least cost with uniform marginals, by an interior point method."""
    D, E = cost.shape
    sums = [np.kron(np.eye(D), np.ones(E)), np.kron(np.ones(D), np.eye(E))]
    marginals = np.r_[np.full(D, 1 / D), np.full(E, 1 / E)]
    return linprog(cost.ravel(), A_eq=np.vstack(sums), b_eq=marginals, method="highs-ipm").fun


def soft_matching_distance(X, Y):
    X, Y = centred(X), centred(Y)
    return math.sqrt(transport(((X[:, :, None] - Y[:, None, :]) ** 2).sum(0)))


def correlation(X, Y):
    return np.corrcoef(X.T, Y.T)[: X.shape[1], X.shape[1] :]


def soft_matching_correlation(X, Y):
    return -transport(-correlation(X, Y))


def hard_correlation_match(X, Y):
    C = correlation(X, Y)
    if C.shape[0] > C.shape[1]:
        C = C.T
    if C.shape[1] > 5:
        return C[linear_sum_assignment(-C)].mean()
    return max(np.mean([C[i, j] for i, j in enumerate(p)]) for p in itertools.permutations(range(C.shape[1]), len(C)))


def soft_correlation_match(X, Y):
    C = correlation(X, Y)
    return (C.max(1).mean() + C.max(0).mean()) / 2


REFERENCES = {
    ("permutation_procrustes", ()): permutation_procrustes,
    ("permutation_procrustes", (("center", True),)): permutation_procrustes_centred,
    ("permutation_angular", ()): permutation_angular,
    ("permutation_aligned_cosine", ()): permutation_aligned_cosine,
    ("soft_matching_distance", ()): soft_matching_distance,
    ("soft_matching_correlation", ()): soft_matching_correlation,
    ("hard_correlation_match", ()): hard_correlation_match,
    ("soft_correlation_match", ()): soft_correlation_match,
}


@pytest.mark.parametrize("id, hyper", REFERENCES)
@pytest.mark.parametrize("count, width, other", SMALL + LARGE)
def test_equals_the_formula(id, hyper, count, width, other):
    X, Y = data(count, width, 0, 1.0), data(count, other, 1, 2.0)
    assert measures.get(id, **dict(hyper))(X, Y) == pytest.approx(REFERENCES[id, hyper](X, Y), rel=1e-9)


def distance(x, others):
    return np.linalg.norm(x - others @ np.linalg.lstsq(others, x)[0]) if others.shape[1] else np.linalg.norm(x)


def maximum_match(X, Y, epsilon):
    """Every pair of subsets tried, the largest valid one taken."""

    def subsets(width):
        return itertools.chain.from_iterable(itertools.combinations(range(width), k) for k in range(width + 1))

    def within(A, B):
        return all(distance(x, B) <= epsilon * np.linalg.norm(x) for x in A.T)

    valid = (
        len(J) + len(K)
        for J in subsets(X.shape[1])
        for K in subsets(Y.shape[1])
        if within(X[:, J], Y[:, K]) and within(Y[:, K], X[:, J])
    )
    return max(valid) / (X.shape[1] + Y.shape[1])


@pytest.mark.parametrize("epsilon", [1e-6, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_maximum_match_is_the_largest_pair_of_sets(epsilon):
    X, Y = data(8, 3), data(8, 4, 1)
    Y[:, :2] = X[:, :2] @ data(2, 2, 2) + 0.3 * Y[:, :2]
    Y[:, 3] = X[:, 2]
    assert measures.get("maximum_match", epsilon=epsilon)(X, Y) == maximum_match(X, Y, epsilon)


def test_maximum_match_values_between_the_ends():
    X = np.eye(9)[:, :4]
    match = measures.get("maximum_match", epsilon=0.5)
    assert match(X, X[:, :2]) == pytest.approx(4 / 6)
    assert match(X, 7 * X[:, [1, 0, 3, 2]]) == 1
    assert match(X, np.eye(9)[:, 4:]) == 0
    assert match(X, np.c_[X, np.zeros(9)]) == 1
    scaled = data(9, 4) * [1, 20, 300, 0.1]
    assert match(scaled, data(9, 6, 1)) == match(data(9, 4), data(9, 6, 1))


@pytest.mark.parametrize("id", ["soft_matching_distance", "soft_matching_correlation"])
@pytest.mark.parametrize("width, other", [(6, 6), (3, 6), (4, 6), (5, 7), (7, 30)])
def test_assignment_and_linear_program_find_the_same(id, width, other, monkeypatch):
    X, Y = data(15, width), data(15, other, 1)
    one = measures.get(id)(X, Y)
    monkeypatch.setattr(math, "lcm", lambda *sizes: 10**6 * int(np.lcm(*sizes)))  # far above the limit
    assert measures.get(id)(X, Y) == pytest.approx(one, rel=1e-9)


def test_soft_matching_of_equal_widths_is_a_permutation():
    X, Y = data(15, 8), data(15, 8, 1)
    expected = permutation_procrustes_centred(X, Y) / math.sqrt(8)
    assert measures.get("soft_matching_distance")(X, Y) == pytest.approx(expected, rel=1e-9)


def test_metrics_obey_the_triangle_inequality():
    any_width = {str(seed): data(12, 2 + 3 * seed, seed) for seed in range(4)}
    same_width = {str(seed): data(12, 5, seed) for seed in range(6)}
    for id, layers in (
        ("soft_matching_distance", any_width),
        ("permutation_procrustes", same_width),
        ("permutation_angular", same_width),
    ):
        d = measures.matrix(id, layers).values
        assert (d[:, None, :] <= d[:, :, None] + d[None] + 1e-12).all()
        assert np.diag(d).max() < 1e-12


def test_angles_reach_from_zero_to_pi():
    X = centred(data(10, 1))
    assert measures.get("permutation_angular")(X, -X) == pytest.approx(math.pi)
    near = centred(data(10, 3)) / np.linalg.norm(centred(data(10, 3)))
    turned = near + 1e-8 * (np.roll(near, 1, 0) - (np.roll(near, 1, 0) * near).sum() * near)
    expected = 1e-8 * math.sqrt(1 - (np.roll(near, 1, 0) * near).sum() ** 2)
    assert measures.get("permutation_angular")(near, turned) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("id", ["hard_correlation_match", "soft_correlation_match", "soft_matching_correlation"])
@pytest.mark.parametrize("dead", [0.0, 0.1])
def test_a_dead_unit_counts_as_no_correlation(id, dead):
    X = data(20, 6)
    assert measures.get(id)(X, X) == pytest.approx(1)
    with_dead = np.hstack([X, np.full((20, 2), dead)])
    assert measures.get(id)(with_dead, with_dead) == pytest.approx(6 / 8)
    assert measures.get(id)(np.full((20, 2), dead), X) == 0


def test_bad_hyperparameters_are_refused():
    for epsilon in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            measures.get("maximum_match", epsilon=epsilon)
    with pytest.raises(ValueError, match="epsilon must be float, got nan"):
        measures.get("maximum_match", epsilon=math.nan)
    with pytest.raises(ValueError, match="center must be bool"):
        measures.get("permutation_angular", center="yes")


def test_dead_units_always_match():
    X = torch.eye(6)[:, :3].double()
    dead, other = torch.zeros_like(X), torch.eye(6)[:, 3:].double()
    f = measures.get("maximum_match", epsilon=0.1)
    assert f(dead, dead) == 1 and f(X, other) == 0
    assert f(torch.cat([X, dead], 1), other) == 3 / 9 and f(dead, X) == 3 / 6
