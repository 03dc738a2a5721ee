"""Graph-based similarity against networkx and the formulas written as loops."""

import itertools
import math
import pickle

import networkx as nx
import numpy as np
import pytest
import torch

from simprune import measures
from simprune.measures import graph as module


def data(count, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) + 0.3


def cosines(X):
    S = X @ X.T / np.outer(*[np.linalg.norm(X, axis=1)] * 2)
    np.fill_diagonal(S, 0)
    return S


def neighbour_graph(X, k):
    """The weighted graph of the k nearest, (D + D') / 2, as networkx sees it."""
    S, D = cosines(X), np.zeros((len(X), len(X)))
    for i, row in enumerate(S):
        near = sorted((j for j in range(len(X)) if j != i), key=lambda j: (-row[j], j))[:k]
        D[i, near] = row[near]
    return (D + D.T) / 2


def layer_similarity(A, B):
    nodes = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(A, B, strict=True)]
    return np.mean(nodes), nodes


@pytest.mark.parametrize("k", [None, 1, 5, 29])
@pytest.mark.parametrize("center", [False, True])
def test_gbs_equals_the_formula(k, center):
    X, Y = data(30, 7), data(30, 40, 1)
    build = cosines if k is None else lambda X: neighbour_graph(X, k)
    clean = (lambda X: X - X.mean(0)) if center else (lambda X: X)
    expected, nodes = layer_similarity(build(clean(X)), build(clean(Y)))
    gbs = measures.get("gbs", k=k, center=center)
    assert gbs(X, Y) == pytest.approx(expected, rel=1e-9)
    found = gbs.nodes(gbs.prepare(X), gbs.prepare(Y))
    assert found.numpy() == pytest.approx(np.array(nodes), rel=1e-9)


def test_gbs_ignores_the_length_of_every_row_but_not_a_shift():
    X, Y = data(30, 7), data(30, 9, 1)
    lengths = np.random.default_rng(2).uniform(0.1, 10, size=(30, 1))
    for hyper in ({}, {"k": 5}):
        gbs = measures.get("gbs", **hyper)
        assert gbs(lengths * X, Y) == pytest.approx(gbs(X, Y), rel=1e-9)
        assert abs(gbs(X + 3, Y) - gbs(X, Y)) > 0.01


def test_gbs_in_float32_is_near_the_value_of_float64():
    X, Y = torch.from_numpy(data(200, 160)).float(), torch.from_numpy(data(200, 160, 1)).float()
    assert measures.get("gbs").prepare(X).data.values.dtype == torch.float32
    for width in (60, 160):
        x, y = X[:, :width], Y[:, :width]
        for hyper in ({}, {"k": 5}):
            gbs = measures.get("gbs", **hyper)
            assert gbs(x, x + y) == pytest.approx(gbs(x.double(), (x + y).double()), abs=1e-6)


@pytest.mark.parametrize("rows", [60, 200])  # wide ones form graphs, many rows do not; 9 and 40 are mixed
def test_gbs_of_thin_and_wide_representations_is_one_formula(rows):
    X = {str(width): data(rows, width, width) for width in (3, 9, 40)}
    X["3"][:2] = 0
    gbs = measures.get("gbs")
    with pytest.warns(measures.DegenerateWarning, match="2 of"):
        prepared = gbs.prepare_all(X)
    found = gbs.matrix(prepared)
    pairs = [[gbs.compare(a, b) for b in prepared] for a in prepared]
    with np.errstate(invalid="ignore", divide="ignore"):
        graphs = [np.nan_to_num(cosines(a)) for a in X.values()]
    expected = [[np.nanmean(np.array(layer_similarity_or_zero(a, b))) for b in graphs] for a in graphs]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_allclose(pairs, expected, atol=1e-9)


def layer_similarity_or_zero(A, B):
    sizes = [np.linalg.norm(a) * np.linalg.norm(b) for a, b in zip(A, B, strict=True)]
    return [a @ b / size if size > 1e-9 else 0.0 for a, b, size in zip(A, B, sizes, strict=True)]


def test_gbs_without_edges():
    X = data(12, 5)
    X[:3] = 0
    gbs = measures.get("gbs")
    with pytest.warns(measures.DegenerateWarning, match="3 of 12 rows are zero"):
        assert gbs(X, X) == pytest.approx(9 / 12)
    with pytest.warns(measures.UndefinedWarning, match="orthogonal"):
        assert math.isnan(gbs(np.linalg.qr(data(12, 12))[0], data(12, 5)))


@pytest.mark.parametrize("count, k", [(20, 2), (60, 5), (25, 24), (150, 8)])
@pytest.mark.parametrize("tile", [1, 2**20])
def test_motifs_equal_the_triangles_of_networkx(count, k, tile, monkeypatch):
    monkeypatch.setattr(module, "TILE", tile)
    X, labels = data(count, 6), np.random.default_rng(3).integers(4, size=count)
    graph = nx.from_numpy_array((neighbour_graph(X, k) != 0).astype(int))
    cliques = [c for c in itertools.takewhile(lambda c: len(c) < 4, nx.enumerate_all_cliques(graph)) if len(c) == 3]
    expected = [sum(len({labels[i] for i in c}) == kinds for c in cliques) for kinds in (1, 2, 3)]
    found = measures.get("gbs_motif", k=k).describe(X, labels)
    assert list(found.counts) == expected
    assert sum(found.counts) == sum(nx.triangles(graph).values()) / 3
    assert found == pytest.approx(expected[0] / len(cliques), rel=1e-12)


def test_motifs_are_a_number_that_survives_pickling():
    found = measures.get("gbs_motif").describe(data(30, 4), np.arange(30) % 2)
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.counts) == (found, found.counts)
    assert isinstance(found, float)


def test_motifs_without_triangles():
    X = np.repeat(np.eye(4), 2, axis=0)  # four pairs
    with pytest.warns(measures.UndefinedWarning, match="no triangles"):
        found = measures.get("gbs_motif", k=1).describe(X, np.arange(8))
    assert math.isnan(found)
    assert found.counts == (0, 0, 0)


@pytest.mark.parametrize("k", [3, 10])
def test_modularity_equals_that_of_networkx(k):
    X, labels = data(60, 6) ** 2, np.random.default_rng(3).integers(4, size=60)
    graph = nx.from_numpy_array(neighbour_graph(X, k))
    expected = nx.community.modularity(graph, [set(np.flatnonzero(labels == c)) for c in range(4)])
    assert measures.get("graph_modularity", k=k).describe(X, labels) == pytest.approx(expected, rel=1e-9)


def test_separated_classes_have_a_high_share_and_modularity():
    labels = np.arange(60) % 3
    X = np.eye(3)[labels] + 0.05 * data(60, 3)
    assert measures.get("gbs_motif").describe(X, labels) == 1
    assert measures.get("graph_modularity").describe(X, labels) == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("id", ["gbs", "gbs_motif", "graph_modularity"])
def test_bad_k_is_refused(id):
    with pytest.raises(ValueError, match="k must be at least 1"):
        measures.get(id, k=0)
    labels = None if id == "gbs" else [0] * 5
    with pytest.raises(ValueError, match="at least 6 rows, got 5"):
        measures.get(id, k=5).prepare(data(5, 3), labels)
