"""Topology measures against matrix exponentials and naive persistent homology."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from simprune import measures
from simprune.measures import imd as imd_module
from simprune.measures.geometry_score import living_times
from simprune.measures.rtd import divergence


def data(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


def apart(X, Y=None):
    Y = X if Y is None else Y
    return np.linalg.norm(X[:, None] - Y[None], axis=-1)


def loops(scales):
    """H1 bars of a filtered complex {simplex: scale} by reducing its boundary matrix; open ones end at infinity."""
    simplices = sorted(scales, key=lambda s: (scales[s], len(s), s))
    place = {simplex: i for i, simplex in enumerate(simplices)}
    reduced, bars = {}, {}
    for i, simplex in enumerate(simplices):
        faces = itertools.combinations(simplex, len(simplex) - 1) if len(simplex) > 1 else ()
        column = {place[face] for face in faces}
        while column and max(column) in reduced:
            column ^= reduced[max(column)]
        if column:
            reduced[max(column)] = column
            bars[max(column)] = scales[simplex]
        elif len(simplex) == 2:
            bars.setdefault(i, math.inf)
    return [(scales[simplices[i]], end) for i, end in bars.items() if len(simplices[i]) == 2]


def rips(M):
    return {
        s: max((M[i, j] for i, j in itertools.combinations(s, 2)), default=0.0)
        for size in (1, 2, 3)
        for s in itertools.combinations(range(len(M)), size)
    }


# ---- imd ----


def heat_trace(X, k):
    D, n = apart(X), len(X)
    np.fill_diagonal(D, np.inf)
    A = np.zeros((n, n))
    np.put_along_axis(A, np.argsort(D, axis=1, kind="stable")[:, :k], 1, axis=1)
    A = np.maximum(A, A.T)
    L = np.eye(n) - A / np.sqrt(np.outer(A.sum(1), A.sum(1)))
    times = np.logspace(-1, 1, 256)
    return times, np.array([np.trace(scipy.linalg.expm(-t * L)) / n for t in times])


@pytest.mark.parametrize("k", [1, 5])
def test_imd_equals_the_heat_trace_by_matrix_exponentials(k):
    X, Y = data(30, 7), data(30, 3, 1) ** 3
    (times, h), (_, g) = heat_trace(X, k), heat_trace(Y, k)
    imd = measures.get("imd", k=k)
    assert imd.prepare(X).data.values.numpy() == pytest.approx(h, rel=1e-9)
    expected = np.max(np.exp(-2 * (times + 1 / times)) * abs(h - g))
    assert imd(X, Y) == pytest.approx(expected, rel=1e-9)
    assert measures.get("imd", k=k, scale=1e6)(X, Y) == pytest.approx(1e6 * expected, rel=1e-9)
    assert imd.error(imd.prepare(X), imd.prepare(Y)) == 0


def test_neighbours_at_equal_distance_count_in_their_order(monkeypatch):
    X = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [1.0], [1e6]], dtype=torch.float64)
    expected = [[1, 2], [4, 0], [0, 1], [1, 4], [1, 0], [3, 1]]
    for tile in (1, 2**20):
        monkeypatch.setattr(imd_module, "TILE", tile)
        found = imd_module.nearest_by_distance(X, 2)
        assert [set(row) for row in found.tolist()] == [set(row) for row in expected]


def test_lanczos_is_exact_for_every_start_vector():
    generator = torch.Generator().manual_seed(0)
    L = imd_module.laplacian(imd_module.nearest_by_distance(torch.from_numpy(data(60, 3)), 5), 60)
    v = torch.nn.functional.normalize(torch.randn(4, 60, generator=generator, dtype=torch.float64))
    times = torch.logspace(-1, 1, 9, dtype=torch.float64)
    expected = torch.stack([(v @ torch.matrix_exp(-t * L.to_dense()) * v).sum(1) for t in times], 1)
    assert torch.allclose(imd_module._quadrature(L, v, times), expected, rtol=1e-11)
    few = torch.linalg.eigh(L.to_dense()).eigenvectors.T[:4]  # the space is exhausted at once
    expected = torch.exp(-times * torch.linalg.eigvalsh(L.to_dense())[:4, None])
    assert torch.allclose(imd_module._quadrature(L, few, times), expected, rtol=1e-9)


def test_above_a_size_imd_is_an_estimate_with_its_error():
    X, Y = data(80, 7), data(80, 3, 1)
    exact, rough = measures.get("imd"), measures.get("imd", exact_up_to=79, probes=200)
    with pytest.warns(measures.DegenerateWarning, match="standard error of up to"):
        a, b = rough.prepare(X), rough.prepare(Y)
    for found, known in ((a, exact.prepare(X)), (b, exact.prepare(Y))):
        wrong = (found.data.values - known.data.values).abs()
        assert 0 < (wrong / found.data.error).max() < 4
    assert abs(rough.compare(a, b) - exact(X, Y)) < 4 * rough.error(a, b)
    assert rough.compare(a, a) == 0


# ---- rtd ----


def normalised(X):
    D = apart(X)
    return D / np.quantile(D, 0.9)


def naive_divergence(r1, r2):
    M = np.block([[np.zeros_like(r1), r1], [r1, np.minimum(r1, r2)]])
    return sum(end - start for start, end in loops(rips(M)))


CLOUDS = [
    (data(4, 2), data(4, 1, 1)),
    (data(9, 2), data(9, 2, 1)),
    (data(9, 8), data(9, 8, 1)),
    (data(9, 8), data(9, 8) + 0.3 * data(9, 8, 1)),
    (data(9, 2).round(), data(9, 3, 1).round()),  # ties
    (np.repeat(data(3, 2), 3, axis=0), data(9, 2, 1)),  # duplicates
    (np.stack([np.cos(np.arange(9) * 0.7), np.sin(np.arange(9) * 0.7)], 1), np.arange(9.0)[:, None]),
]


@pytest.mark.parametrize("X, Y", CLOUDS)
def test_rtd_equals_naive_persistence_of_the_whole_matrix(X, Y):
    r1, r2 = normalised(X), normalised(Y)
    there, back = naive_divergence(r1, r2), naive_divergence(r2, r1)
    assert divergence(r1, r2) == pytest.approx(there, rel=1e-9, abs=1e-12)
    assert divergence(r2, r1) == pytest.approx(back, rel=1e-9, abs=1e-12)
    assert measures.get("rtd")(X, Y) == pytest.approx((there + back) / 2, rel=1e-9, abs=1e-12)


def test_rtd_equals_naive_persistence_on_random_distances():
    for seed in range(20):  # no triangle inequality: columns that need many additions
        r1, r2 = (np.random.default_rng([seed, i]).uniform(0.1, 1, (8, 8)) for i in range(2))
        for r in (r1, r2):
            r[:] = np.triu(r, 1) + np.triu(r, 1).T
        assert divergence(r1, r2) == pytest.approx(naive_divergence(r1, r2), rel=1e-9, abs=1e-12)


def test_rtd_of_more_rows_is_the_mean_over_the_same_subsets():
    X, Y = data(40, 3), data(40, 3, 1)
    rng = np.random.default_rng(7)
    chosen = [rng.choice(40, 12, replace=False) for _ in range(3)]
    whole = measures.get("rtd")
    expected = np.mean([whole(X[rows], Y[rows]) for rows in chosen])
    assert measures.get("rtd", subsets=3, size=12, seed=7)(X, Y) == pytest.approx(expected, rel=1e-9)
    assert measures.get("rtd", subsets=3, size=12, seed=8)(X, Y) != pytest.approx(expected, rel=1e-3)


def test_rtd_of_mostly_equal_rows_is_undefined():
    X = np.zeros((60, 2))
    X[0] = 1
    with pytest.warns(measures.UndefinedWarning, match="nine tenths"):
        assert math.isnan(measures.get("rtd")(X, data(60, 2)))


# ---- geometry score ----


def naive_living_times(D, gamma, i_max):
    """The definition: every set of landmarks, every row."""
    top, count = gamma * D.max(), D.shape[1]
    scales = {(i,): 0.0 for i in range(count)}
    for size in (2, 3):
        for inside in itertools.combinations(range(count), size):
            faces = list(itertools.combinations(inside, size - 1))
            outside = [i for i in range(count) if i not in inside]
            if all(face in scales for face in faces):
                seen = min(max(row[list(inside)]) - min(row[outside], default=np.inf) for row in D)
                scale = max(0.0, seen, *(scales[face] for face in faces))
                if scale <= top:
                    scales[inside] = scale
    bars = [(start, min(end, top)) for start, end in loops(scales)]
    times = np.zeros(i_max)
    ends = sorted({0.0, top, *itertools.chain(*bars)})
    for a, b in itertools.pairwise(ends):
        alive = sum(start <= (a + b) / 2 < end for start, end in bars)
        if alive < i_max:
            times[alive] += (b - a) / top
    return times


@pytest.mark.parametrize("count, landmarks, width", [(6, 3, 1), (6, 4, 2), (20, 10, 3), (15, 15, 4)])
@pytest.mark.parametrize("gamma", [1e-4, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("tied", [False, True])
def test_living_times_equal_naive_persistence(count, landmarks, width, gamma, tied):
    X = data(count, width).round() if tied else data(count, width)
    chosen = np.random.default_rng(1).integers(count, size=landmarks)
    D = apart(X, X[chosen])
    expected = naive_living_times(D, gamma, 4)
    assert living_times(D, gamma, 4) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_geometry_score_is_the_squared_difference_of_mean_living_times():
    X, Y = data(50, 2), data(50, 5, 1)
    score = measures.get("geometry_score", landmarks=9, i_max=5, repeats=20, gamma=0.2, seed=3)
    rng = np.random.default_rng(3)
    draws = [rng.integers(50, size=9) for _ in range(20)]
    a, b = (np.array([naive_living_times(apart(Z, Z[rows]), 0.2, 5) for rows in draws]) for Z in (X, Y))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum()
    assert expected > 1e-3
    p, q = score.prepare(X), score.prepare(Y)
    assert score.compare(p, q) == pytest.approx(expected, rel=1e-9)
    influence = 2 * (a - b) @ (a.mean(0) - b.mean(0))
    assert score.error(p, q) == pytest.approx(influence.std(ddof=1) / math.sqrt(20), rel=1e-9)


def test_geometry_score_defaults():
    score = measures.get("geometry_score")
    assert (score.landmarks, score.i_max, score.repeats, score.gamma) == (64, 100, 1000, None)
    few = {"landmarks": 16, "repeats": 20}
    X, Y = data(200, 3), data(200, 3, 1)
    explicit = measures.get("geometry_score", gamma=200 / (128 * 5000), **few)
    assert measures.get("geometry_score", **few)(X, Y) == explicit(X, Y) > 0


def test_a_circle_has_one_loop_for_long():
    angle = np.arange(80) * np.pi / 40
    score = measures.get("geometry_score", landmarks=20, repeats=20, gamma=0.5)
    circle = score.prepare(np.stack([np.cos(angle), np.sin(angle)], 1)).data.mean
    line = score.prepare(angle[:, None]).data.mean
    assert circle[1] > 0.5
    assert line[0] > 0.9


@pytest.mark.parametrize(
    "id, hyper, message",
    [
        ("imd", {"k": 0}, "k must be at least 1"),
        ("imd", {"scale": 0.0}, "scale positive"),
        ("imd", {"probes": 1}, "probes at least 2"),
        ("rtd", {"size": 2}, "size must be at least 3"),
        ("rtd", {"subsets": 0}, "subsets at least 1"),
        ("geometry_score", {"landmarks": 2}, "landmarks must be at least 3"),
        ("geometry_score", {"repeats": 1}, "repeats at least 2"),
        ("geometry_score", {"gamma": 0.0}, "gamma must be positive"),
    ],
)
def test_bad_hyperparameters_are_refused(id, hyper, message):
    with pytest.raises(ValueError, match=message):
        measures.get(id, **hyper)
