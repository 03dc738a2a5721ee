"""Neighbourhood measures against loops over scikit-learn's neighbours, and the stated rules for ties and zero rows."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from simprune import measures
from simprune.core.neighbours import nearest
from simprune.measures import DegenerateWarning, UndefinedWarning

IDS = ["knn_jaccard", "mutual_knn", "second_order_cosine", "rank_similarity", "joint_rank_jaccard", "cknna"]
SHAPES = [(30, 4, 4), (30, 3, 50), (12, 20, 7)]


def data(count, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) + 0.5


def neighbours(X, k):
    """Nearest first, by scikit-learn, which leaves each row out by itself when asked without rows."""
    return NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(X).kneighbors()[1]


def cosines(X):
    """A zero row has cosine 0 to all."""
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    X = X / np.where(lengths > 0, lengths, 1)
    return X @ X.T


def references(X, Y, k, A, B):
    """One value per id from neighbours A, B (N, k)."""
    S, T = cosines(X), cosines(Y)
    rows = {id: [] for id in IDS[:-1]}
    aligned = np.zeros(3)
    for i, (a, b) in enumerate(zip(A.tolist(), B.tolist(), strict=True)):
        shared, union = sorted(set(a) & set(b)), sorted(set(a) | set(b))
        jaccard = len(shared) / len(union)
        ranks = [(a.index(j) + 1, b.index(j) + 1) for j in shared]
        rank = sum(2 / ((1 + abs(r - q)) * (r + q)) for r, q in ranks)
        rank = rank / sum(1 / m for m in range(1, len(shared) + 1)) if shared else 0.0
        rows["knn_jaccard"].append(jaccard)
        rows["mutual_knn"].append(len(shared) / k)
        rows["rank_similarity"].append(rank)
        rows["joint_rank_jaccard"].append(rank * jaccard)
        s, t = S[i, union], T[i, union]
        if s.any() and t.any():
            rows["second_order_cosine"].append(s @ t / np.linalg.norm(s) / np.linalg.norm(t))
        p, q = S[i] - S[i].mean(), T[i] - T[i].mean()
        aligned += [(p[shared] * q[shared]).sum(), (p[a] ** 2).sum(), (q[b] ** 2).sum()]
    return {id: np.mean(values) for id, values in rows.items()} | {
        "cknna": aligned[0] / math.sqrt(aligned[1] * aligned[2])
    }


@pytest.mark.parametrize("count, width, other", SHAPES)
@pytest.mark.parametrize("k", [1, 5, 10])
def test_equals_the_definitions(count, width, other, k):
    X, Y = data(count, width), data(count, other, 1)
    Y[:, :3] += X[:, :3]
    expected = references(X, Y, k, neighbours(X, k), neighbours(Y, k))
    for id in IDS:
        assert measures.get(id, k=k)(X, Y) == pytest.approx(expected[id], rel=1e-9, abs=1e-12), id


def test_the_default_is_ten_neighbours():
    X, Y = data(40, 5), data(40, 6, 1)
    for id in IDS:
        assert measures.get(id)(X, Y) == measures.get(id, k=10)(X, Y)


def by_rule(X, k):
    """Neighbours by falling cosine, lower index first, never oneself."""
    S = cosines(X).round(10)
    np.fill_diagonal(S, -2)
    return np.argsort(-S, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("width", [3, 50])
def test_duplicates_and_zero_rows_go_by_index_and_never_to_oneself(width):
    X = data(30, width)
    X[10:20] = 2 * X[:10]
    X[25:28] = 0
    indices, values = nearest(torch.from_numpy(X), 8)
    assert np.array_equal(indices.numpy(), by_rule(X, 8))
    assert (indices != torch.arange(30)[:, None]).all()
    assert (values[25:28] == 0).all()
    assert values.diff(dim=1).max() <= 1e-11
    Y = data(30, 6, 1)
    for id in IDS:
        expected = references(X, Y, 8, by_rule(X, 8), by_rule(Y, 8))[id]
        with pytest.warns(DegenerateWarning, match="3 of 30 rows are zero"):
            assert measures.get(id, k=8)(X, Y) == pytest.approx(expected)


def test_row_blocks_make_no_difference(monkeypatch):
    X = torch.from_numpy(data(30, 5))
    whole = nearest(X, 4)
    monkeypatch.setattr("simprune.core.neighbours.TILE", 7 * 30)
    assert torch.equal(nearest(X, 4)[0], whole[0])


def test_zero_rows_are_left_out_of_second_order_cosine():
    X = data(20, 4)
    Y = X.copy()
    Y[3] = 0
    with pytest.warns(DegenerateWarning, match="1 of 20 rows"):
        value = measures.get("second_order_cosine", k=19)(X, Y)
    S, T = cosines(X), cosines(Y)
    for M in (S, T):
        np.fill_diagonal(M, 0)
    S, T = (np.delete(M, 3, 0) for M in (S, T))
    assert value == pytest.approx(((S * T).sum(1) / np.linalg.norm(S, axis=1) / np.linalg.norm(T, axis=1)).mean())
    with pytest.warns(UndefinedWarning), pytest.warns(DegenerateWarning):
        assert math.isnan(measures.get("second_order_cosine", k=3)(np.zeros((9, 2)), data(9, 2)))


@pytest.mark.parametrize("id", IDS)
def test_limits_of_k(id):
    with pytest.raises(ValueError, match="k must be at least 1"):
        measures.get(id, k=0)
    with pytest.raises(ValueError, match="at least 11 rows, got 10"):
        measures.get(id)(data(10, 3), data(10, 3))
    X = data(11, 3)
    assert measures.get(id)(X, X) == pytest.approx(1)
