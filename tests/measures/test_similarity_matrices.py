"""The similarity-matrix family against plain float64 formulas, scipy included, and where libraries go wrong."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from scipy.spatial.distance import cdist, pdist, squareform

from simprune import measures
from simprune.measures import DegenerateWarning, UndefinedWarning

SHAPES = [(12, 3, 5), (12, 3, 40), (12, 50, 40), (30, 5, 29), (40, 8, 8)]
shapes = pytest.mark.parametrize("count, width, other", SHAPES)
CLOSE = {"rel": 1e-9, "abs": 1e-11}


def data(count, width, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset


def gram(X):
    X = X - X.mean(0)
    return X @ X.T


def centred(K):
    H = np.eye(len(K)) - 1 / len(K)
    return H @ K @ H


def cosine(A, B):
    return (A * B).sum() / math.sqrt((A * A).sum() * (B * B).sum())


def hsic(K, L):
    """The three-term unbiased estimator of Song et al."""
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    middle = K.sum() * L.sum() / ((n - 1) * (n - 2))
    return (np.trace(K @ L) + middle - 2 / (n - 2) * (K @ L).sum()) / (n * (n - 3))


def unit_rows(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


@shapes
@pytest.mark.parametrize("batch", [4, 7, 100])
def test_minibatch(count, width, other, batch):
    X, Y = data(count, width, offset=10.0), data(count, other, 1)
    measure = measures.get("cka_minibatch", batch_size=batch)
    batches = [slice(start, start + batch) for start in range(0, count, batch)]
    if 0 < count % batch < 4 and batch < count:
        with pytest.raises(ValueError, match="at least 4 rows"):
            measure(X, Y)
        return
    total = lambda A, B: sum(hsic(gram(A[each]), gram(B[each])) for each in batches)  # noqa: E731
    assert measure(X, Y) == pytest.approx(total(X, Y) / math.sqrt(total(X, X) * total(Y, Y)), **CLOSE)


def test_every_batch_counts_and_one_batch_is_the_debiased_value():
    X, Y = data(32, 5), data(32, 6, 1)
    assert measures.get("cka_minibatch", batch_size=32)(X, Y) == pytest.approx(measures.get("cka_debiased")(X, Y))
    changed = X.copy()
    changed[:8] = data(8, 5, 2)
    measure = measures.get("cka_minibatch", batch_size=8)
    assert abs(measure(changed, Y) - measure(X, Y)) > 1e-3
    with pytest.raises(ValueError, match="at least 4"):
        measures.get("cka_minibatch", batch_size=3)


@shapes
@pytest.mark.parametrize("kernel", ["cosine", "linear", "rbf"])
def test_sparse(count, width, other, kernel):
    X, Y = data(count, width), data(count, other, 1)

    def sparse(X):
        if kernel == "rbf":
            squares = cdist(X, X, "sqeuclidean")
            K = np.exp(-squares / (2 * np.median(squares)))
        else:
            X = unit_rows(X) if kernel == "cosine" else X
            K = X @ X.T
        kept = np.zeros_like(K)
        for i, row in enumerate(K):
            best = np.argsort(-row, kind="stable")[:5]
            kept[i, best] = row[best]
        return centred(kept)

    assert measures.get("cka_sparse", top=5, kernel=kernel)(X, Y) == pytest.approx(
        cosine(sparse(X), sparse(Y)), **CLOSE
    )


def test_sparse_with_all_entries_is_cka():
    X, Y = data(15, 4), data(15, 6, 1)
    full = measures.get("cka_sparse", top=15, kernel="linear")(X, Y)
    assert full == pytest.approx(measures.get("cka")(X, Y))
    assert measures.get("cka_sparse", top=15, kernel="rbf")(X, Y) == pytest.approx(measures.get("cka_rbf")(X, Y))
    with pytest.raises(ValueError, match="at least 16 rows"):
        measures.get("cka_sparse", top=16)(X, Y)


@shapes
@pytest.mark.parametrize("psd", [True, False])
def test_deconfounded(count, width, other, psd):
    X, Y, Z = data(count, width), data(count, other, 1), data(count, 4, 2)

    def residual(X):
        K, K0 = (gram(each) / np.trace(gram(each)) for each in (X, Z))
        K = K - K0 * (K0 * K).sum() / (K0 * K0).sum()
        if psd:
            values, vectors = np.linalg.eigh(K)
            K = vectors @ np.diag(values.clip(0)) @ vectors.T
        return centred(K)

    measure = measures.get("cka_deconfounded", psd=psd)
    assert measure(X, Y, confounder=Z) == pytest.approx(cosine(residual(X), residual(Y)), **CLOSE)


def test_deconfounding_by_nothing_and_by_everything():
    X, Y = data(20, 4), data(20, 5, 1)
    measure = measures.get("cka_deconfounded")
    assert measure(X, Y, confounder=np.ones((20, 3))) == pytest.approx(measures.get("cka")(X, Y))
    with pytest.warns(UndefinedWarning, match="similarities of the confounder"):
        assert math.isnan(measure(X, Y, confounder=3 * X + 1))
    with pytest.raises(ValueError, match="expected the inputs X, confounder"):
        measure(X, Y)


@shapes
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_rsm_norm_difference(count, width, other, offset):
    X, Y = data(count, width, offset=offset), data(count, other, 1, offset)
    expected = np.linalg.norm(cdist(X, X) - cdist(Y, Y), "fro")
    assert measures.get("rsm_norm_difference")(X, Y) == pytest.approx(expected, **CLOSE)
    expected = np.linalg.norm(X @ X.T - Y @ Y.T, "fro")
    assert measures.get("rsm_norm_difference", inner="dot")(X, Y) == pytest.approx(expected, **CLOSE)


def test_small_differences_keep_their_digits():
    X = data(20, 4)
    layers = {"a": X, "b": X * (1 + 1e-9), "c": data(20, 4, 1)}
    values = measures.matrix("rsm_norm_difference", layers).values
    assert values[0, 1] == pytest.approx(1e-9 * np.linalg.norm(cdist(X, X)), rel=1e-6)
    assert values[0, 0] == 0
    assert values[0, 2] == pytest.approx(np.linalg.norm(cdist(X, X) - cdist(layers["c"], layers["c"])))
    assert (values == values.T).all()


INNER = {
    "correlation": lambda X: 1 - pdist(X, "correlation"),
    "cosine": lambda X: 1 - pdist(X, "cosine"),
    "dot": lambda X: squareform(X @ X.T, checks=False),
    "euclidean": pdist,
    "sqeuclidean": lambda X: pdist(X, "sqeuclidean"),
    "mahalanobis": lambda X: pdist(X, "mahalanobis", VI=np.linalg.inv(np.cov(X.T))),
}
OUTER = {
    "spearman": lambda u, v: stats.spearmanr(u, v).statistic,
    "pearson": lambda u, v: stats.pearsonr(u, v).statistic,
    "kendall": lambda u, v: stats.kendalltau(u, v).statistic,
    "cosine": cosine,
    "euclidean": lambda u, v: np.linalg.norm(u - v),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_rsa(inner, outer):
    X, Y = data(25, 6, offset=1.0), data(25, 9, 1, 1.0)
    expected = OUTER[outer](INNER[inner](X), INNER[inner](Y))
    measure = measures.get("rsa", inner=inner, outer=outer)
    assert measure(X, Y) == pytest.approx(expected, **CLOSE)
    assert measures.matrix(measure, {"a": X, "b": Y}).values[1, 0] == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", ["spearman", "euclidean"])
def test_rsa_declares_the_invariances_of_its_inner_function(inner, outer):
    X, Y = data(25, 6, offset=1.0), data(25, 9, 1, 1.0)
    measure = measures.get("rsa", inner=inner, outer=outer)
    rng = np.random.default_rng(5)
    full = rng.normal(size=(6, 6))
    changed = {
        "PT": X[:, rng.permutation(6)],
        "OT": X @ np.linalg.qr(full)[0],
        "IS": 3 * X,
        "ILT": X @ full,
        "TR": X + 5 * rng.normal(size=6),
        "AT": X @ full + 5 * rng.normal(size=6),
    }
    for kind, Z in changed.items():
        assert (abs(measure(Z, Y) - measure(X, Y)) < 1e-9) == (kind in measure.invariant_to), kind


@pytest.mark.parametrize("outer", ["spearman", "kendall"])
def test_ties_share_their_rank_also_where_rounding_tells_them_apart(outer):
    rng = np.random.default_rng(0)
    X, Y = rng.integers(0, 3, size=(2, 20, 4)) / 10
    u, v = (pdist(each, "sqeuclidean").round(9) for each in (X, Y))
    assert len(set(u)) < len(u) / 2
    measure = measures.get("rsa", inner="sqeuclidean", outer=outer)
    assert measure(X, Y) == pytest.approx(OUTER[outer](u, v), **CLOSE)
    assert measure(X @ linalg.qr(data(4, 4))[0], Y) == pytest.approx(measure(X, Y), **CLOSE)


def test_rsa_of_one_unit_or_constant_rows():
    with pytest.warns(UndefinedWarning, match="one unit"), pytest.warns(DegenerateWarning, match="20 of 20 rows"):
        assert math.isnan(measures.get("rsa")(data(20, 1), data(20, 3)))
    X = data(20, 5)
    X[:4] = [[0.1], [0.2], [0.3], [7.0]]
    with pytest.warns(DegenerateWarning, match="4 of 20 rows are equal across units"):
        assert math.isfinite(measures.get("rsa")(X, data(20, 3)))
    with pytest.warns(UndefinedWarning):  # whitened, so many units leave all rows equally far apart
        assert math.isnan(measures.get("rsa", inner="mahalanobis")(data(20, 40), data(20, 3)))
    for bad in ({"inner": "manhattan"}, {"outer": "manhattan"}):
        with pytest.raises(ValueError, match="must be one of .*, got 'manhattan'"):
            measures.get("rsa", **bad)


@shapes
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_distance_correlation(count, width, other, offset):
    X, Y = data(count, width, offset=offset), data(count, other, 1, offset)
    A, B = cdist(X, X), cdist(Y, Y)
    expected = math.sqrt(cosine(centred(A), centred(B)))
    assert measures.get("distance_correlation")(X, Y) == pytest.approx(expected, **CLOSE)
    expected = hsic(A, B) / math.sqrt(hsic(A, A) * hsic(B, B))
    assert measures.get("distance_correlation", debiased=True)(X, Y) == pytest.approx(expected, **CLOSE)


def test_debiased_distance_correlation_of_equally_distant_inputs_is_undefined():
    with pytest.warns(UndefinedWarning, match="equally far apart"):
        assert math.isnan(measures.get("distance_correlation", debiased=True)(np.eye(9), data(9, 3)))


@shapes
def test_eigenspace_overlap(count, width, other):
    X, Y = data(count, width, offset=1.0), data(count, other, 1)
    U, V = linalg.orth(X), linalg.orth(Y)
    expected = np.linalg.norm(U.T @ V) ** 2 / max(width, other)
    assert measures.get("eigenspace_overlap")(X, Y) == pytest.approx(expected, **CLOSE)
    own = measures.get("eigenspace_overlap")(X, np.hstack([X, X, np.zeros((count, 1))]))
    assert own == pytest.approx(min(count, width) / (2 * width + 1))


@pytest.mark.filterwarnings("ignore::simprune.measures.DegenerateWarning")
@shapes
@pytest.mark.parametrize("lam", [0.0, 1e-3, 1.0])
def test_gulp_equals_both_formulas(count, width, other, lam):
    X, Y = (data(count, each, seed, 10.0) for seed, each in enumerate((width, other)))
    X, Y = (each - each.mean(0) for each in (X, Y))
    X, Y = (each * math.sqrt(count) / np.linalg.norm(each) for each in (X, Y))

    def inverse(S):
        return np.linalg.pinv(S + lam * np.eye(len(S)), rcond=1e-11, hermitian=True)

    S, T, C = X.T @ X / count, Y.T @ Y / count, X.T @ Y / count
    P, Q = inverse(S), inverse(T)
    squared = np.trace(P @ S @ P @ S) + np.trace(Q @ T @ Q @ T) - 2 * np.trace(P @ C @ Q @ C.T)
    direct = np.linalg.norm(X @ P @ X.T / count - Y @ Q @ Y.T / count)
    value = measures.get("gulp", lam=lam)(5 * X + 3, Y)
    assert value == pytest.approx(direct, rel=1e-9, abs=1e-7)
    assert value**2 == pytest.approx(squared, rel=1e-9, abs=1e-7)
    values = measures.matrix(measures.get("gulp", lam=lam), {"a": X, "b": Y, "c": X + 1}).values
    assert values[0, 1] == pytest.approx(direct, rel=1e-9, abs=1e-7)
    assert values[0, 2] == pytest.approx(0, abs=1e-11)


def test_gulp_says_when_it_is_saturated():
    with pytest.warns(DegenerateWarning, match="use more rows than units"):
        assert measures.get("gulp")(data(12, 20), data(12, 30, 1)) == pytest.approx(0, abs=1e-10)
    with pytest.raises(ValueError, match="lam"):
        measures.get("gulp", lam=-1.0)


@pytest.mark.parametrize("count, width, other", [(12, 20, 13), (12, 3, 50), (12, 12, 30)])
@pytest.mark.parametrize("reg", [None, 0.1, 10.0])
def test_riemannian_distance(count, width, other, reg):
    X, Y = data(count, width), data(count, other, 1)
    measure = measures.get("riemannian_distance", reg=reg)
    if reg is None and width < count:
        with pytest.raises(ValueError, match="at least as many units as rows, got 12 rows of 3 units: pass reg="):
            measure(X, Y)
        return
    S, T = (Z @ Z.T / Z.shape[1] + (reg or 0.0) * np.eye(count) for Z in (X, Y))
    assert measure(X, Y) == pytest.approx(np.linalg.norm(np.log(linalg.eigh(T, S, eigvals_only=True))), rel=1e-9)


def test_riemannian_distance_of_dependent_rows_is_undefined():
    X = data(8, 20)
    X[7] = X[6]
    with pytest.warns(UndefinedWarning, match="pass reg="):
        assert math.isnan(measures.get("riemannian_distance")(data(8, 20, 1), X))
    with pytest.raises(ValueError, match="reg must be positive"):
        measures.get("riemannian_distance", reg=0.0)


def huber(a, b):
    d = np.abs(a - b)
    return np.where(d < 1, d**2 / 2, d - 0.5).sum()


@shapes
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_relational_knowledge_loss(count, width, other, offset):
    X, Y = data(count, width, offset=offset), data(count, other, 1, offset)
    D, E = (cdist(Z, Z) / pdist(Z).mean() for Z in (X, Y))
    assert measures.get("relational_knowledge_loss")(X, Y) == pytest.approx(huber(D, E), **CLOSE)


def angles(X):
    triples = np.array(list(itertools.permutations(range(len(X)), 3)))
    i, j, k = triples.T
    return (unit_rows(X[i] - X[j]) * unit_rows(X[k] - X[j])).sum(1)


def test_relational_knowledge_loss_of_angles_exactly_and_by_sampling():
    X, Y = data(14, 3), data(14, 6, 1)
    expected = huber(angles(X), angles(Y))
    assert measures.get("relational_knowledge_loss", form="angle")(X, Y) == pytest.approx(expected, **CLOSE)
    sampled = measures.get("relational_knowledge_loss", form="angle", triples=1500)
    assert sampled(X, Y) == pytest.approx(expected, rel=0.15)
    assert sampled(X, Y) != measures.get("relational_knowledge_loss", form="angle", triples=1500, seed=1)(X, Y)
    i, j, k = sampled._triples(14, 14 * 13 * 12)  # pyright: ignore[reportAttributeAccessIssue]
    assert not ((i == j) | (j == k) | (i == k)).any()
    assert torch.bincount(i, minlength=14).min() > 1500 / 14 / 2


@pytest.mark.parametrize("hyper", [{"form": "shape"}, {"triples": 0}])
def test_relational_knowledge_loss_refuses(hyper):
    with pytest.raises(ValueError, match="form must be|triples must be"):
        measures.get("relational_knowledge_loss", **hyper)
