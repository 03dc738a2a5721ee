"""Statistics of one representation against plain formulas, networkx and exhaustive search."""

import math

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

from simprune import measures
from simprune.measures import DegenerateWarning, UndefinedWarning
from simprune.measures._modularity import class_graph_modularity, louvain, modularity

SHAPES = [(30, 4), (30, 50), (25, 24)]
shapes = pytest.mark.parametrize("count, width", SHAPES)
CLOSE = {"rel": 1e-9, "abs": 1e-12}


def data(count, width, seed=0, offset=0.5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) / width + offset


def unit(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


@shapes
@pytest.mark.parametrize("offset", [0.5, 1e3])
def test_simple_formulas(count, width, offset):
    X = data(count, width, offset=offset)
    mean = X.mean(0)
    assert measures.get("magnitude").describe(X) == pytest.approx(np.linalg.norm(mean), **CLOSE)
    expected = (unit(X) @ mean / np.linalg.norm(mean)).mean()
    assert measures.get("concentricity").describe(X) == pytest.approx(expected, **CLOSE)
    values = np.linalg.eigvalsh(np.cov(X.T))
    expected = values.sum() ** 2 / (values**2).sum()
    assert measures.get("participation_ratio").describe(X) == pytest.approx(expected, **CLOSE)
    labels = np.arange(count) % 4
    expected = (unit(X) @ unit(X).T * (labels[:, None] == labels)).mean()
    assert measures.get("tolerance").describe(X, labels) == pytest.approx(expected, **CLOSE)
    assert measures.get("tolerance").describe(X, 7 - 100 * labels) == pytest.approx(expected, **CLOSE)


@shapes
@pytest.mark.parametrize("t", [0.01, 2])
def test_uniformity(count, width, t):
    X = data(count, width)
    for normalize, rows in ((True, unit(X)), (False, X)):
        squares = ((rows[:, None] - rows) ** 2).sum(-1)
        expected = logsumexp(-t * squares) - 2 * math.log(count)
        assert measures.get("uniformity", t=t, normalize=normalize).describe(X) == pytest.approx(expected, **CLOSE)


def test_uniformity_has_its_bounds():
    assert measures.get("uniformity", normalize=False).describe(100 * np.eye(8)) == pytest.approx(-math.log(8))
    assert measures.get("uniformity").describe(np.ones((8, 3))) == 0
    with pytest.raises(ValueError, match="t must be positive"):
        measures.get("uniformity", t=0.0)


def test_zero_rows_are_counted():
    X = data(10, 4)
    X[2:4] = 0
    kept = np.delete(X, [2, 3], 0)
    with pytest.warns(DegenerateWarning, match="2 of 10 rows are zero"):
        value = measures.get("concentricity").describe(X)
    assert value == pytest.approx(0.8 * measures.get("concentricity").describe(kept))
    with pytest.warns(DegenerateWarning):
        value = measures.get("tolerance").describe(X, np.zeros(10, int))
    assert value == pytest.approx(0.64 * measures.get("tolerance").describe(kept, np.zeros(8, int)))
    with pytest.warns(UndefinedWarning, match="mean of all rows is zero"):
        assert math.isnan(measures.get("concentricity").describe(np.vstack([kept, -kept])))


def neighbour_distances(X, k):
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(X).kneighbors()[0]


@shapes
@pytest.mark.parametrize("offset", [0.5, 1e3])
def test_intrinsic_dimension(count, width, offset):
    X = data(count, width, offset=offset)
    r = neighbour_distances(X - X.mean(0), 4)
    mu = np.sort(np.log(r[:, 1] / r[:, 0]))
    kept = int(0.9 * count)
    y = -np.log(1 - np.arange(1, count + 1) / count, where=np.arange(count) < count - 1, out=np.zeros(count))[:kept]
    slope = np.linalg.lstsq(mu[:kept, None], y, rcond=None)[0][0]
    tolerance = 1e-9 if offset < 1 else 1e-7  # the reference's own rounding at that offset
    assert measures.get("intrinsic_dimension").describe(X) == pytest.approx(slope, rel=tolerance)
    mle = measures.get("intrinsic_dimension", method="mle")
    assert mle.describe(X) == pytest.approx((count - 1) / mu.sum(), rel=tolerance)
    pooled = (3 * count - 1) / np.log(r[:, 3:] / r[:, :3]).sum()
    assert measures.get("intrinsic_dimension", method="mle", k=4).describe(X) == pytest.approx(pooled, rel=tolerance)


@pytest.mark.parametrize("method", ["twonn", "mle"])
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_intrinsic_dimension_is_found(method, dimension):
    X = np.random.default_rng(0).uniform(size=(1500, dimension)) @ data(dimension, 20)
    assert measures.get("intrinsic_dimension", method=method).describe(X) == pytest.approx(dimension, rel=0.15)


def test_duplicates_are_left_out_of_intrinsic_dimension():
    X = data(30, 5)
    measure = measures.get("intrinsic_dimension")
    with pytest.warns(DegenerateWarning, match="7 of 37 rows repeat"):
        assert measure.describe(np.vstack([X, X[:7]])) == pytest.approx(measure.describe(X))
    with pytest.warns(UndefinedWarning, match="too few rows differ"), pytest.warns(DegenerateWarning):
        assert math.isnan(measure.describe(X[[0, 0, 0, 1, 1]]))
    with pytest.warns(UndefinedWarning):
        assert math.isnan(measure.describe(np.eye(9)))


@pytest.mark.parametrize("hyper", [{"method": "pca"}, {"k": 3}, {"method": "mle", "k": 1}])
def test_intrinsic_dimension_refuses(hyper):
    with pytest.raises(ValueError, match="method must be|k must be"):
        measures.get("intrinsic_dimension", **hyper)


def graph(X, k, binary):
    S = unit(X) @ unit(X).T
    indices = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(X).kneighbors()[1]
    D = np.zeros_like(S)
    for i, near in enumerate(indices):
        D[i, near] = 1.0 if binary else S[i, near]
    return np.maximum(D, D.T) if binary else (D + D.T) / 2


def newman(A, labels):
    groups = [set(np.flatnonzero(labels == each).tolist()) for each in np.unique(labels)]
    return nx.community.modularity(nx.from_numpy_array(A), groups)


@pytest.mark.parametrize("id, binary", [("graph_modularity", False), ("knn_graph_modularity", True)])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_class_graph_modularity_equals_networkx(id, binary, k):
    labels = np.arange(40) % 3
    X = data(40, 6, offset=2.0) + np.eye(6)[labels]
    expected = newman(graph(X, k, binary), labels)
    value = class_graph_modularity(torch.from_numpy(X), torch.from_numpy(labels), k, binary)
    assert float(value) == pytest.approx(expected, **CLOSE)
    assert measures.get(id, k=k).describe(X, labels - 5) == pytest.approx(expected, **CLOSE)


def test_knn_graph_modularity_is_zero_for_one_class_and_wants_enough_rows():
    assert measures.get("knn_graph_modularity").describe(data(20, 4), np.zeros(20, int)) == pytest.approx(0)
    with pytest.raises(ValueError, match="at least 11 rows"):
        measures.get("knn_graph_modularity").describe(data(10, 4), np.zeros(10, int))
    with pytest.raises(ValueError, match="k must be at least 1"):
        measures.get("knn_graph_modularity", k=0)


def partitions(items):
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        for i, group in enumerate(rest):
            yield [*rest[:i], [items[0], *group], *rest[i + 1 :]]
        yield [[items[0]], *rest]


def correlation_graph(X):
    A = np.abs(np.corrcoef(X.T))
    np.fill_diagonal(A, 0)
    return A


@pytest.mark.parametrize("seed", range(3))
def test_neuron_graph_modularity_is_the_largest_there_is(seed):
    X = data(20, 7, seed)
    G = nx.from_numpy_array(correlation_graph(X))
    best = max(nx.community.modularity(G, each) for each in partitions(list(range(7))))
    assert measures.get("neuron_graph_modularity").describe(X) == pytest.approx(best, **CLOSE)


def test_neuron_graph_modularity_is_no_worse_than_networkx_and_ignores_the_order_of_units():
    X = np.repeat(data(60, 6), 8, axis=1) + 0.3 * data(60, 48, 1)
    A = correlation_graph(X)
    G = nx.from_numpy_array(A)
    best = max(nx.community.modularity(G, nx.community.louvain_communities(G, seed=seed)) for seed in range(5))
    measure = measures.get("neuron_graph_modularity")
    assert measure.describe(X) >= best - 1e-12
    assert float(modularity(torch.from_numpy(A), torch.from_numpy(louvain(A)))) == pytest.approx(measure.describe(X))
    shuffled = X[:, np.random.default_rng(0).permutation(48)]
    assert measure.describe(shuffled) == pytest.approx(measure.describe(X), **CLOSE)
    assert measures.get("neuron_graph_modularity", seed=3).describe(X) >= best - 1e-3


def test_a_dead_unit_does_not_count_and_one_unit_has_no_graph():
    X = data(30, 6)
    measure = measures.get("neuron_graph_modularity")
    assert measure.describe(np.hstack([X, np.full((30, 2), 0.1)])) == pytest.approx(measure.describe(X))
    with pytest.warns(UndefinedWarning, match="no two units"):
        assert math.isnan(measure.describe(X[:, :1]))


def test_two_representations_compare_by_the_difference():
    X, Y = data(30, 4), data(30, 9, 1)
    assert pdist([[measures.get("magnitude").describe(Z)] for Z in (X, Y)])[0] == measures.get("magnitude")(X, Y)
