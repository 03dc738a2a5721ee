"""Representational similarity matrices (RSMs): which inputs are alike in a representation, entry by entry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor
from torch.nn.functional import huber_loss, pdist

from simprune.core.neighbours import TIE, directions, unit_scaled_
from simprune.measures._base import Distance, Measure
from simprune.measures._factors import basis
from simprune.measures._products import TILE, InnerProduct, Vector, centred
from simprune.measures._rows import above_diagonal, distance_matrix, warn_of_zero_rows
from simprune.measures.cka import Alignment, centred_kernel_, kernel_vector

NEAR = 1e-4  # of the squared norms; below, their difference with the product has lost too many digits


@dataclass(frozen=True)
class Difference(Distance, InnerProduct):
    """|phi(X) - phi(Y)| from the squared norms (`size`) and the product, or directly where the two are close."""

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        return (size_a + size_b - 2 * inner).clamp(min=0).sqrt()

    def _compare(self, a: Vector, b: Vector) -> Tensor:
        value = super()._compare(a, b)
        return self._directly(a, b) if value.square() < NEAR * (a.size + b.size) else value

    def _matrix(self, items: Sequence[Vector]) -> Tensor:
        values = super()._matrix(items)
        sizes = torch.stack([item.size for item in items])
        close = values.square() < NEAR * (sizes[:, None] + sizes)
        for i, j in close.triu().nonzero().tolist():
            values[i, j] = values[j, i] = self._directly(items[i], items[j])
        return values

    def _directly(self, a: Vector, b: Vector) -> Tensor:
        step = max(1, TILE // self._rows(a, 0, 1).numel())
        total = torch.zeros_like(a.size)
        for start in range(0, a.height, step):
            total += (self._rows(a, start, start + step) - self._rows(b, start, start + step)).square().sum()
        return total.sqrt()


def _dot_products(X: Tensor) -> Tensor:
    """All entries of X X', those off the diagonal once and times sqrt(2): norms stay those of the full matrix."""
    K = X @ X.T
    return torch.cat([K.diagonal(), math.sqrt(2) * above_diagonal(K)])


@dataclass(frozen=True)
class RSMNormDifference(Difference):
    """Frobenius norm of the difference of two RSMs, in [0, inf); a metric of RSMs, 0 = equal; scale counts.

    X (N, D), Y (N, D'); `inner` is "euclidean" (distances between rows) or "dot" (their dot products); all N^2
    entries count. In units of the representations (squared for "dot"). Raises ValueError for another inner.

    Source: Klabunde, Schumacher, Strohmaier, Lemmerich 2023, arXiv:2305.06329.

    >>> X = torch.tensor([[0.0], [3.0]])
    >>> round(RSMNormDifference()(X, 2 * X), 4)
    4.2426
    """

    inner: str = "euclidean"

    id = "rsm_norm_difference"
    is_metric = True
    invariant_to = frozenset({"PT", "OT", "TR"})
    cost = "prepare: N^2/2 entries, O(N^2 D); pair: O(N^2)"
    undefined = "this does not occur for finite rows"

    def _configure(self) -> None:
        self._require("inner", self.inner in ("euclidean", "dot"), '"euclidean" or "dot"')
        if self.inner == "dot":
            self._declare(invariant_to=frozenset({"PT", "OT"}))

    def _prepare(self, X: Tensor) -> Vector:
        entries = _dot_products(X) if self.inner == "dot" else math.sqrt(2) * pdist(X)
        return Vector(len(entries), entries.square().sum(), entries[:, None])


INNER = {
    "correlation": frozenset({"PT", "IS"}),
    "cosine": frozenset({"PT", "OT", "IS"}),
    "dot": frozenset({"PT", "OT", "IS"}),
    "euclidean": frozenset({"PT", "OT", "IS", "TR"}),
    "sqeuclidean": frozenset({"PT", "OT", "IS", "TR"}),
    "mahalanobis": frozenset({"PT", "OT", "IS", "ILT", "TR", "AT"}),
}
OUTER = ("spearman", "pearson", "kendall", "cosine", "euclidean")


@dataclass(frozen=True)
class RSA(Difference):
    """Representational similarity analysis: correlation of the entries i < j of two RSMs, in [-1, 1], 1 = equal.

    X (N, D), Y (N, D'). `inner` compares rows: "correlation" (across units), "cosine", "dot", or a distance,
    "euclidean", "sqeuclidean", "mahalanobis" (Euclidean after whitening). `outer` compares the RSMs: "spearman",
    "pearson", "kendall" (tau-b, on the CPU), "cosine", or the distance "euclidean", in [0, inf), 0 = equal. Entries
    equal up to rounding are ties and share their mean rank. "correlation" is neither OT- nor TR-invariant: with few
    units it depends on their basis. A row without direction counts as similar to none, with a DegenerateWarning.
    Raises ValueError for another inner or outer.

    Source: Kriegeskorte, Mur, Bandettini 2008, doi:10.3389/neuro.06.004.2008.

    >>> X = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    >>> round(RSA()(X, 3 * X + 1), 4)
    1.0
    """

    inner: str = "correlation"
    outer: str = "spearman"

    id = "rsa"
    larger_is_more_similar = True
    range = (-1.0, 1.0)
    invariant_to = frozenset({"PT", "IS"})
    minimum_rows = 3
    cost = (
        "prepare: N^2/2 entries, O(N^2 D), for ranks a sort of them; pair: O(N^2), for kendall O(N^2 log N) on the CPU"
    )
    undefined = "all entries of an RSM are equal (for correlation: rows of one unit, or constant rows)"

    def _configure(self) -> None:
        self._require("inner", self.inner in INNER, f"one of {', '.join(INNER)}")
        self._require("outer", self.outer in OUTER, f"one of {', '.join(OUTER)}")
        self._declare(invariant_to=INNER[self.inner])
        if self.outer == "euclidean":
            if self.inner in ("dot", "euclidean", "sqeuclidean"):
                self._declare(invariant_to=self.invariant_to - {"IS"})
            self._declare(larger_is_more_similar=False, range=Distance.range, is_metric=True)

    def _prepare(self, X: Tensor) -> Vector:
        entries = self._entries(X)
        largest = entries.abs().max()
        varied = entries.max() - entries.min() > TIE * largest
        if self.outer in ("spearman", "kendall"):
            entries = mean_ranks(entries, TIE * largest)
        if self.outer in ("spearman", "pearson"):
            entries = entries - entries.mean()
        square = entries.square().sum()
        defined = largest > 0 if self.outer == "cosine" else varied
        size = square if self.outer == "euclidean" else torch.where(defined, square, math.nan)
        return Vector(len(entries), size, entries[:, None])

    def _entries(self, X: Tensor) -> Tensor:
        if self.inner == "correlation":
            X = centred(X.T).T
            warn_of_zero_rows(self, X, "are equal across units and have no direction; they count as similar to no row")
        elif self.inner == "cosine":
            warn_of_zero_rows(self, X)
        elif self.inner == "mahalanobis":
            return pdist(basis(unit_scaled_(centred(X))).U) * math.sqrt(len(X) - 1)
        if self.inner in ("correlation", "cosine", "dot"):
            rows = X if self.inner == "dot" else directions(X)
            return above_diagonal(rows @ rows.T)
        apart = pdist(X)
        return apart.square_() if self.inner == "sqeuclidean" else apart

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        if self.outer == "euclidean":
            return super()._score(inner, size_a, size_b)
        return (inner / (size_a.sqrt() * size_b.sqrt())).clamp(-1.0, 1.0)

    def _compare(self, a: Vector, b: Vector) -> Tensor:
        if self.outer == "euclidean":
            return super()._compare(a, b)
        if self.outer == "kendall":
            tau = np.asarray(scipy.stats.kendalltau(*(item.values.flatten().cpu().numpy() for item in (a, b))))[0]
            return torch.where((a.size + b.size).isnan(), math.nan, a.size.new_tensor(float(tau)))
        return InnerProduct._compare(self, a, b)

    def _matrix(self, items: Sequence[Vector]) -> Tensor:
        if self.outer == "euclidean":
            return super()._matrix(items)
        return (Measure if self.outer == "kendall" else InnerProduct)._matrix(self, items)


def mean_ranks(values: Tensor, tie: Tensor) -> Tensor:
    """Ranks 1..M of values (M,), float64; values no more than `tie` from the next share their mean rank."""
    ordered, order = values.sort()
    run = torch.nn.functional.pad(ordered.diff() > tie, (1, 0)).cumsum(0)  # number of each entry's run of ties
    first, last = torch.searchsorted(run, run), torch.searchsorted(run, run, right=True) - 1
    return torch.empty_like(values).scatter_(0, order, 1 + (first + last).to(values.dtype) / 2)


@dataclass(frozen=True)
class DistanceCorrelation(Alignment):
    """Distance correlation of X (N, D) and Y (N, D'), in [0, 1], 0 = independent (for large N), 1 = equal in shape.

    The root of <A, B> / (|A| |B|), A and B doubly centred Euclidean distances. Rises to 1 for unrelated wide
    representations; `debiased=True` U-centres and gives <A, B> / (|A| |B|) without the root, in [-1, 1].

    Source: Szekely, Rizzo, Bakirov 2007, arXiv:0803.4101; Szekely, Rizzo 2013, doi:10.1016/j.jmva.2013.02.012.

    >>> X = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    >>> round(DistanceCorrelation()(X, X**2), 4)
    0.97
    """

    debiased: bool = False

    id = "distance_correlation"
    cost = "prepare: the N x N centred distances, O(N^2 D); pair: O(N^2)"
    undefined = "a representation is the same for all inputs, or (debiased) has them all equally far apart"

    def _prepare(self, X: Tensor) -> Vector:
        A = distance_matrix(unit_scaled_(centred(X)))
        scale = torch.linalg.vector_norm(A)
        return kernel_vector(centred_kernel_(A, self.debiased), scale)

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        ratio = super()._score(inner, size_a, size_b)
        return ratio if self.debiased else ratio.sqrt()


@dataclass(frozen=True)
class RelationalKnowledgeLoss(Distance):
    """Huber loss (delta = 1) between relations of rows, summed, in [0, inf), 0 = equal; grows with N.

    form="distance": distances between rows of X (N, D), in units of their mean, over all ordered pairs. "angle": the
    cosine of the angle at row j between rows i and k, over all ordered triples, or from `triples` of them drawn with
    `seed` where there are more, scaled up to all. Raises ValueError for another form and for triples < 1.

    Source: Park, Kim, Lu, Cho 2019, arXiv:1904.05068.

    >>> X = torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(RelationalKnowledgeLoss()(X, X**2), 4)
    0.2812
    """

    form: str = "distance"
    triples: int = 100_000
    seed: int = 0

    id = "relational_knowledge_loss"
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    minimum_rows = 3
    cost = "prepare: N^2/2 distances, O(N^2 D), or T cosines, O(T D), T = min(triples, N^3); pair: O(N^2) or O(T)"
    undefined = "a representation is the same for all inputs"

    def _configure(self) -> None:
        self._require("form", self.form in ("distance", "angle"), '"distance" or "angle"')
        self._require("triples", self.triples >= 1, "at least 1")

    def _prepare(self, X: Tensor) -> tuple[Tensor, float]:
        """Relations (M,), and the number of ordered tuples that one of them stands for."""
        if self.form == "distance":
            apart = pdist(unit_scaled_(centred(X)))
            return apart / apart.mean(), 2.0
        count = len(X)
        total = count * (count - 1) * (count - 2)
        i, j, k = (index.to(X.device) for index in self._triples(count, total))
        rows = unit_scaled_(centred(X))
        step = max(1, TILE // X.shape[1])
        cosines = [
            (directions(rows[a] - rows[b]) * directions(rows[c] - rows[b])).sum(1)
            for a, b, c in zip(i.split(step), j.split(step), k.split(step), strict=True)
        ]
        return torch.where(rows.any(), torch.cat(cosines), math.nan), total / len(i)

    def _triples(self, count: int, total: int) -> list[Tensor]:
        """Ordered triples of different rows: all `total`, or a sample that depends on seed and count only."""
        if total <= self.triples:
            i, j, k = torch.cartesian_prod(*[torch.arange(count)] * 3).T
            apart = (i != j) & (j != k) & (i != k)
            return [i[apart], j[apart], k[apart]]
        generator = torch.Generator().manual_seed(self.seed)
        middle, first, second = (
            torch.randint(bound, (self.triples,), generator=generator) for bound in (count, count - 1, count - 2)
        )
        second = second + (second >= first)
        return [(middle + 1 + first) % count, middle, (middle + 1 + second) % count]

    def _compare(self, a: tuple[Tensor, float], b: tuple[Tensor, float]) -> Tensor:
        return a[1] * huber_loss(a[0], b[0], reduction="sum")
