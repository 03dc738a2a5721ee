"""Similarity of features with gradients: explicit outer products, matrix square roots, and what a sketch does."""

import math

import numpy as np
import pytest
import torch

from simprune import measures
from simprune.measures.gradients import sketched


def data(count, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) + 0.5


def pair(count=20, seed=0, widths=(5, 3)):
    return data(count, widths[0], seed), data(count, widths[1], seed + 100)


def outer_kernel(F, G):
    """Of the outer products, formed."""
    rows = np.einsum("ni,nj->nij", F, G).reshape(len(F), -1)
    H = np.eye(len(F)) - 1 / len(F)
    return H @ rows @ rows.T @ H


def cka(K, L):
    return np.sum(K * L) / (np.linalg.norm(K) * np.linalg.norm(L))


def nbs(K, L):
    """By matrix square roots; good to the root of rounding where kernels are singular."""
    values, vectors = np.linalg.eigh(K)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    values = np.linalg.eigvalsh(root @ L @ root).clip(0)
    return np.sqrt(values).sum() / math.sqrt(np.trace(K) * np.trace(L))


def nbs_of_outer_products(a, b):
    """The nuclear norm of the centred outer products' cross moment: exact, and never forms a kernel."""
    X, Y = (np.einsum("ni,nj->nij", F, G).reshape(len(F), -1) for F, G in (a, b))
    X, Y = X - X.mean(0), Y - Y.mean(0)
    return np.linalg.norm(X.T @ Y, "nuc") / (np.linalg.norm(X) * np.linalg.norm(Y))


def matrix(id, a, b, **hyper):
    layers = {name: {"X": F, "gradients": G} for name, (F, G) in {"a": a, "b": b}.items()}
    return measures.matrix(id, layers, **hyper).values[0, 1]


SHAPES = [((5, 3), (4, 4)), ((1, 1), (7, 2)), ((30, 30), (2, 9))]


@pytest.mark.parametrize("first, second", SHAPES)
def test_cka_equals_the_formula(first, second):
    a, b = pair(widths=first), pair(seed=1, widths=second)
    assert matrix("gradient_cka", a, b) == pytest.approx(cka(outer_kernel(*a), outer_kernel(*b)), rel=1e-9)
    K, L = (np.array(outer_kernel(*each)) for each in (a, b))
    n = len(K)
    for M in (K, L):  # U-centring, from its definition
        M[:] -= np.diag(np.diag(M))
        M[:] = M - (M.sum(0) + M.sum(1)[:, None]) / (n - 2) + M.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(M, 0)
    assert matrix("gradient_cka", a, b, debiased=True) == pytest.approx(cka(K, L), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("first, second", SHAPES)
def test_nbs_equals_the_formula(first, second):
    a, b = pair(widths=first), pair(seed=1, widths=second)
    found = matrix("gradient_nbs", a, b)
    assert found == pytest.approx(nbs_of_outer_products(a, b), rel=1e-9)
    assert found == pytest.approx(nbs(outer_kernel(*a), outer_kernel(*b)), abs=1e-6)


@pytest.mark.parametrize("id", ["gradient_cka", "gradient_nbs"])
def test_a_reparameterised_layer_keeps_its_kernel(id):
    (F, G), b = pair(), pair(seed=1)
    rotation, other = (np.linalg.qr(data(width, width, 7))[0] for width in (5, 3))
    assert matrix(id, (3 * F @ rotation, G @ other / 3), b) == pytest.approx(matrix(id, (F, G), b), rel=1e-9)
    assert abs(matrix(id, (F, G + 1), b) - matrix(id, (F, G), b)) > 1e-3


@pytest.mark.parametrize("id", ["gradient_cka", "gradient_nbs"])
def test_vanishing_gradients_are_undefined(id):
    a, b = pair(), pair(seed=1)
    with pytest.warns(measures.UndefinedWarning, match="features or gradients vanish"):
        assert math.isnan(matrix(id, (a[0], 0 * a[1]), b))


def test_the_sketch_is_clarkson_woodruff():
    parts = [torch.from_numpy(each) for each in pair(50)]
    S = sketched([torch.eye(50, dtype=torch.float64)], 12, 3, 0)[0]
    per_chunk = S.view(3, 4, 50)
    assert ((per_chunk != 0).sum(1) == 1).all()
    assert torch.allclose(S.abs()[S != 0], torch.tensor(3**-0.5, dtype=torch.float64))
    for sketch, part in zip(sketched(parts, 12, 3, 0), parts, strict=True):
        assert torch.allclose(sketch, S @ part, rtol=1e-12, atol=1e-12)
    assert torch.equal(S[:, :30], sketched([torch.eye(30, dtype=torch.float64)], 12, 3, 0)[0])
    assert not torch.equal(S, sketched([torch.eye(50, dtype=torch.float64)], 12, 3, 1)[0])


@pytest.mark.filterwarnings("ignore::simprune.measures.DegenerateWarning")
@pytest.mark.parametrize("id", ["gradient_cka", "gradient_nbs"])
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_sketched_value_is_that_of_the_sketches(id, chunks):
    a, b = pair(60), pair(60, 1)
    small = [[each.numpy() for each in sketched([torch.from_numpy(x) for x in p], 16, chunks, 5)] for p in (a, b)]
    expected = matrix(id, *small)
    assert matrix(id, a, b, sketch=16, chunks=chunks, seed=5) == pytest.approx(expected, rel=1e-9)
    assert matrix(id, a, a, sketch=16, chunks=chunks, seed=5) == pytest.approx(1)


@pytest.mark.parametrize("id", ["gradient_cka", "gradient_nbs"])
def test_sketches_of_different_inputs_compare_with_a_warning(id):
    measure = measures.get(id, sketch=16)
    (F, G), (F2, G2) = pair(60), pair(90, 1)
    a, b = measure.prepare(F, gradients=G), measure.prepare(F2, gradients=G2)
    with pytest.warns(measures.DegenerateWarning, match=r"raises values.*baseline.*across different inputs"):
        assert 0 < measure.compare(a, b) < 1
    with pytest.warns(measures.DegenerateWarning, match="raises values"):
        measure.matrix([a, b])
    exact = measures.get(id)
    with pytest.raises(ValueError, match="equal numbers of rows, got 60 and 90"):
        exact.compare(exact.prepare(F, gradients=G), exact.prepare(F2, gradients=G2))
    with pytest.raises(ValueError, match="expected what"):
        exact.compare(a, a)  # sketched and exact do not mix


@pytest.mark.filterwarnings("ignore::simprune.measures.DegenerateWarning")
@pytest.mark.parametrize("id", ["gradient_cka", "gradient_nbs"])
def test_the_baseline_shows_how_much_a_sketch_raises_values(id):
    a, b = pair(400, widths=(16, 16)), pair(400, 1, widths=(16, 16))
    exact, small = measures.get(id), measures.get(id, sketch=16)
    plain = exact.baseline(exact.prepare(a[0], gradients=a[1]), b[0], b[1], repeats=3)
    raised = small.baseline(small.prepare(a[0], gradients=a[1]), b[0], b[1], repeats=3)
    assert plain.shape == raised.shape == (3,)
    assert raised.min() > plain.max() + 0.05
    unrelated = matrix(id, a, b, sketch=16)
    assert abs(unrelated - raised.mean()) < 0.1
    assert np.array_equal(raised, small.baseline(small.prepare(a[0], gradients=a[1]), b[0], b[1], repeats=3))


def test_the_baseline_shuffles_features_and_gradients_together():
    (F, G) = pair()
    measure = measures.get("gradient_cka")
    order = np.random.default_rng([0, 1]).permutation(20)
    expected = matrix("gradient_cka", (F, G), (F[order], G[order]))
    assert measure.baseline(measure.prepare(F, gradients=G), F, G, 1)[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="equal numbers of rows, got 20 and 19"):
        measure.baseline(measure.prepare(F, gradients=G), F[:19], G[:19])


@pytest.mark.parametrize(
    "hyper, message",
    [
        ({"sketch": 3}, "sketch must be at least 4"),
        ({"sketch": 10, "chunks": 4}, "multiple of chunks"),
        ({"sketch": 10, "chunks": 0}, "multiple of chunks"),
        ({"chunks": 2}, "set sketch too"),
    ],
)
@pytest.mark.parametrize("id", ["gradient_cka", "gradient_nbs"])
def test_bad_sketches_are_refused(id, hyper, message):
    with pytest.raises(ValueError, match=message):
        measures.get(id, **hyper)
