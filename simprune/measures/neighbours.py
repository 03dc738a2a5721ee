"""Neighbourhoods: are the same inputs next to an input in two representations?

The k nearest rows are those of largest cosine, the row itself left out, most similar first; cosines equal up to
rounding go by row number, and a zero row has cosine 0 to all.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simprune.core.neighbours import directions, nearest
from simprune.measures._base import Measure
from simprune.measures._rows import warn_of_zero_rows


class Neighbours(NamedTuple):
    """The k neighbours of every row in ascending order of index (N, k), their ranks from 1, their `values`."""

    indices: Tensor
    ranks: Tensor
    values: Tensor


class Common(NamedTuple):
    """Whether a neighbour in the first is one in the second too (N, k), and its column there (else any column)."""

    shared: Tensor
    column: Tensor


def common(a: Neighbours, b: Neighbours) -> Common:
    column = torch.searchsorted(b.indices, a.indices).clamp_(max=b.indices.shape[1] - 1)
    return Common(b.indices.gather(1, column) == a.indices, column)


@dataclass(frozen=True)
class Neighbourhood(Measure):
    """Mean over rows of a comparison of the k nearest neighbours of that row in X and in Y."""

    k: int = 10

    invariant_to = frozenset({"PT", "OT", "IS"})
    cost = "prepare: k neighbours of each row, 3 N k numbers, O(N^2 D) in row blocks; pair: O(N k log k)"
    undefined = "this does not occur for finite rows"

    def _configure(self) -> None:
        self._require("k", self.k >= 1, "at least 1")
        self._declare(minimum_rows=self.k + 1)

    def _prepare(self, X: Tensor) -> Neighbours:
        warn_of_zero_rows(self, X)
        by_rank, cosines = nearest(X, self.k)
        indices, order = by_rank.sort(dim=1)
        return Neighbours(indices, order + 1, self._values(X, cosines).gather(1, order))

    def _values(self, X: Tensor, cosines: Tensor) -> Tensor:
        return cosines

    def _compare(self, a: Neighbours, b: Neighbours) -> Tensor:
        return self._per_row(a, b, common(a, b)).mean()

    def _per_row(self, a: Neighbours, b: Neighbours, both: Common) -> Tensor:
        raise NotImplementedError


def _jaccard(both: Common) -> Tensor:
    count = both.shared.sum(1, dtype=torch.float64)
    return count / (2 * both.shared.shape[1] - count)


def _rank_similarity(a: Neighbours, b: Neighbours, both: Common) -> Tensor:
    first, second = a.ranks.double(), b.ranks.gather(1, both.column).double()
    agreement = torch.where(both.shared, 2 / ((1 + (first - second).abs()) * (first + second)), 0.0).sum(1)
    best = (1 / torch.arange(1, first.shape[1] + 1, device=first.device, dtype=torch.float64)).cumsum(0)
    count = both.shared.sum(1)
    return agreement / best[(count - 1).clamp(min=0)]  # no shared neighbour: 0 / 1


@dataclass(frozen=True)
class KNNJaccard(Neighbourhood):
    """Mean over rows of |A and B| / |A or B|, A and B the k nearest rows in X (N, D), Y (N, D'); in [0, 1], 1 = same.

    Nearest by cosine. A zero row gives a DegenerateWarning. Raises ValueError for k < 1 and fewer than k + 1 rows.

    Source: Klabunde, Schumacher, Strohmaier, Lemmerich 2023, arXiv:2305.06329.

    >>> X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> KNNJaccard()(X, -2 * X)
    1.0
    """

    id = "knn_jaccard"

    def _per_row(self, a: Neighbours, b: Neighbours, both: Common) -> Tensor:
        return _jaccard(both)


@dataclass(frozen=True)
class MutualKNN(Neighbourhood):
    """Mean share of the k nearest rows that X (N, D) and Y (N, D') have in common, in [0, 1], 1 = same; k/N by chance.

    Nearest by cosine. A zero row gives a DegenerateWarning. Raises ValueError for k < 1 and fewer than k + 1 rows.

    Source: Huh, Cheung, Wang, Isola 2024, arXiv:2405.07987.

    >>> X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> MutualKNN(k=29)(X, X[:, :2])
    1.0
    """

    id = "mutual_knn"

    def _per_row(self, a: Neighbours, b: Neighbours, both: Common) -> Tensor:
        return both.shared.sum(1, dtype=torch.float64) / self.k


@dataclass(frozen=True)
class RankSimilarity(Neighbourhood):
    """Agreement of the ranks of shared nearest rows in X (N, D) and Y (N, D'), mean over rows, in [0, 1], 1 = same.

    Per row sum over shared neighbours of 2 / ((1 + |r - r'|)(r + r')), r and r' their ranks from 1, over its largest
    value sum_{m <= number shared} 1/m; 0 if none is shared. How many are shared counts in `joint_rank_jaccard`.
    Nearest by cosine. A zero row gives a DegenerateWarning. Raises ValueError for k < 1 and fewer than k + 1 rows.

    Source: Klabunde, Schumacher, Strohmaier, Lemmerich 2023, arXiv:2305.06329.

    >>> X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> round(RankSimilarity()(X, -2 * X), 4)
    1.0
    """

    id = "rank_similarity"

    def _per_row(self, a: Neighbours, b: Neighbours, both: Common) -> Tensor:
        return _rank_similarity(a, b, both)


@dataclass(frozen=True)
class JointRankJaccard(Neighbourhood):
    """Mean over rows of rank similarity times Jaccard similarity of the k nearest rows, in [0, 1], 1 = same.

    X (N, D), Y (N, D'); per row as in `rank_similarity` and `knn_jaccard`. A zero row gives a DegenerateWarning.
    Raises ValueError for k < 1 and fewer than k + 1 rows.

    Source: Klabunde, Schumacher, Strohmaier, Lemmerich 2023, arXiv:2305.06329.

    >>> X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> round(JointRankJaccard()(X, -2 * X), 4)
    1.0
    """

    id = "joint_rank_jaccard"

    def _per_row(self, a: Neighbours, b: Neighbours, both: Common) -> Tensor:
        return _rank_similarity(a, b, both) * _jaccard(both)


@dataclass(frozen=True)
class CKNNA(Neighbourhood):
    """Alignment of the cosines to shared nearest rows of X (N, D), Y (N, D'), in [-1, 1], 1 = equal.

    <A, B> / (|A| |B|), A and B the cosines to the k nearest rows less the row's mean cosine (over all N rows), zero
    elsewhere: the definition of the paper; the code published with it applies an HSIC estimator to the masked
    kernels instead. A zero row gives a DegenerateWarning. Raises ValueError for k < 1 and fewer than k + 1 rows.

    Source: Huh, Cheung, Wang, Isola 2024, arXiv:2405.07987.

    >>> X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> round(CKNNA()(X, -2 * X), 4)
    1.0
    """

    id = "cknna"
    range = (-1.0, 1.0)
    undefined = "the cosines of a row to its neighbours and to all rows are equal, for every row"

    def _values(self, X: Tensor, cosines: Tensor) -> Tensor:
        rows = directions(X)
        return cosines - (rows @ rows.mean(0))[:, None]

    def _compare(self, a: Neighbours, b: Neighbours) -> Tensor:
        both = common(a, b)
        inner = (a.values * torch.where(both.shared, b.values.gather(1, both.column), 0.0)).sum()
        noise = a.values.numel() * (16 * torch.finfo(a.values.dtype).eps) ** 2
        sizes = a.values.square().sum(), b.values.square().sum()
        defined = torch.minimum(*sizes) > noise
        return torch.where(defined, inner / (sizes[0] * sizes[1]).sqrt(), math.nan).clamp(-1.0, 1.0)


class Cosines(NamedTuple):
    """Neighbours, and the cosines of all rows (N, N)."""

    near: Neighbours
    all: Tensor


@dataclass(frozen=True)
class SecondOrderCosine(Neighbourhood):
    """Mean over rows of the cosine between a row's similarities in X (N, D) and in Y (N, D'), in [-1, 1], 1 = equal.

    A row's similarities are its cosines to the rows among its k nearest in X or in Y. Rows for which these are all
    zero, such as zero rows (a DegenerateWarning counts them), are left out. Raises ValueError for k < 1 and fewer
    than k + 1 rows.

    Source: Hamilton, Leskovec, Jurafsky 2016, arXiv:1606.02821.

    >>> X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    >>> round(SecondOrderCosine()(X, -2 * X), 4)
    1.0
    """

    id = "second_order_cosine"
    range = (-1.0, 1.0)
    cost = "prepare: k neighbours of each row and the N x N cosines, O(N^2 D); pair: O(N k log k)"
    undefined = "every row has cosine 0 to all its neighbours"

    def _prepare(self, X: Tensor) -> Cosines:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = directions(X)
        return Cosines(super()._prepare(X), rows @ rows.T)

    def _compare(self, a: Cosines, b: Cosines) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        union = torch.cat([a.near.indices, b.near.indices], 1)
        once = torch.cat([torch.ones_like(a.near.indices, dtype=torch.bool), ~common(b.near, a.near).shared], 1)
        x, y = (torch.where(once, item.all.gather(1, union), 0.0) for item in (a, b))
        lengths = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
        counts = lengths > 0
        cosines = torch.where(counts, (x * y).sum(1) / torch.where(counts, lengths, 1.0), 0.0)
        return (cosines.sum() / counts.sum()).clamp(-1.0, 1.0)
