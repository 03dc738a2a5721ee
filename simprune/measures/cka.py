"""Centred kernel alignment: how alike two representations arrange the same inputs.

Features are centred before any Gram matrix. That makes the Gram matrix K of a linear kernel doubly centred as
it stands, and turns U-centring (no diagonal, unbiased HSIC) into adding
(d_i + d_j)/(N-2) - sum(d)/((N-1)(N-2)), d the diagonal of K: its row sums without the diagonal are -d.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._products import InnerProduct, Vector, centred


class Features(NamedTuple):
    """Centred rows (N, D) whose Gram matrix is formed only when needed; `diagonal` (N,) of it in float64."""

    rows: Tensor
    diagonal: Tensor


@dataclass(frozen=True)
class Alignment(InnerProduct):
    """Cosine of two centred kernel matrices: <K, L> / (|K| |L|)."""

    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    debiased = False  # a subclass may make it a hyperparameter

    def _configure(self) -> None:
        if self.debiased:
            self._declare(range=(-1.0, 1.0), minimum_rows=4)

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        return (inner / (size_a * size_b).sqrt()).clamp(*self.range)

    def _vector(self, K: Tensor, trace: Tensor) -> Vector:
        """A centred kernel and its squared norm, NaN if that is only rounding error at this trace."""
        square = torch.linalg.vector_norm(K, dim=1).double().square().sum()  # short sums keep float32's digits
        noise = (16 * torch.finfo(K.dtype).eps * trace).square() / len(K)
        return Vector(len(K), torch.where(square > noise, square, math.nan), K)


def kernel_vector(K: Tensor, scale: Tensor) -> Vector:
    """K (N, any) and its squared norm, NaN where that is only rounding error of a matrix of norm `scale`."""
    square = K.square().sum()
    return Vector(len(K), torch.where(square > (16 * torch.finfo(K.dtype).eps * scale).square(), square, math.nan), K)


@dataclass(frozen=True)
class CKA(Alignment):
    """Linear CKA in [0, 1], 1 = equal up to rotation, scale and shift.

    |X'Y|^2 / (|X'X| |Y'Y|) in Frobenius norms, X (N, D) and Y (N, D') centred. Close to 1 for unrelated
    representations once D exceeds N: use `cka_debiased` there. Errors as for every measure (`prepare`).

    Source: Kornblith, Norouzi, Lee, Hinton 2019, arXiv:1905.00414.

    >>> X = torch.eye(4)[:, :2]
    >>> round(CKA()(X, X[:, :1]), 4)
    0.7454
    """

    id = "cka"
    keeps_float32 = True
    cost = "prepare: the Gram matrix, O(N^2 D), or only centred rows if 2D <= N; pair: O(N^2), or O(N D D')"
    undefined = "a representation is the same for all inputs"

    def _prepare(self, X: Tensor) -> Vector:
        rows = unit_scaled_(centred(X))
        count, width = rows.shape
        # The rows of a thin representation are stored, for its Gram matrix would be larger. A kernel that vanishes in
        # U-centring (all rows equally far apart) has D >= N - 1, and so takes the first branch.
        if 2 * width > count:
            K = rows @ rows.T
            diagonal = K.diagonal().double()
            return self._vector(self._centred_(K, diagonal), diagonal.sum())
        diagonal = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
        item = Vector(count, diagonal.new_zeros(()), Features(rows, diagonal))
        square = self._inner(item, item)
        return Vector(count, torch.where(square > 0, square, math.nan), item.values)

    def _rows(self, item: Vector, start: int, stop: int) -> Tensor:
        if isinstance(item.values, Tensor):
            return super()._rows(item, start, stop)
        rows, diagonal = item.values
        return self._centred_(rows[start:stop] @ rows.T, diagonal, start)

    def _centred_(self, block: Tensor, diagonal: Tensor, start: int = 0) -> Tensor:
        """Rows of the Gram matrix from `start` on, U-centred in place if this measure is debiased."""
        if self.debiased:
            n = len(diagonal)
            shift = (diagonal / (n - 2) - diagonal.sum() / (2 * (n - 1) * (n - 2))).to(block.dtype)
            block += shift
            block += shift[start : start + len(block), None]
            block.diagonal(start).zero_()
        return block

    def _inner(self, a: Vector, b: Vector) -> Tensor:
        if isinstance(a.values, Tensor) and isinstance(b.values, Tensor):
            return super()._inner(a, b)
        if isinstance(b.values, Tensor):
            a, b = b, a
        right = b.values.rows
        if isinstance(a.values, Tensor):  # a.values is centred, so that centring b's Gram matrix changes nothing
            dtype = torch.promote_types(a.values.dtype, right.dtype)
            right = right.to(dtype)
            return ((a.values.to(dtype) @ right) * right).sum(dtype=torch.float64)
        left = a.values.rows
        dtype = torch.promote_types(left.dtype, right.dtype)
        inner = torch.linalg.vector_norm(left.T.to(dtype) @ right.to(dtype), dtype=torch.float64).square()
        if self.debiased:
            n, d, e = a.height, a.values.diagonal, b.values.diagonal
            inner = inner - d @ e * n / (n - 2) + d.sum() * e.sum() / ((n - 1) * (n - 2))
        return inner

    def _matrix(self, items: Sequence[Vector]) -> Tensor:
        count = items[0].height
        thin = [item.values.rows.shape[1] for item in items if isinstance(item.values, Features)]
        through_features = sum(thin) ** 2 / 2
        through_gram = count * sum(thin) + count * len(items) ** 2
        joint = len(thin) == len(items) and through_features < through_gram
        inner = self._features_product([item.values for item in items]) if joint else self._product(items, items)
        sizes = torch.stack([item.size for item in items])
        sizes = torch.where(sizes.isnan(), sizes, inner.diagonal())  # equal rounding: ones stay ones
        return self._score(inner, sizes[:, None], sizes[None, :])

    def _features_product(self, items: Sequence[Features]) -> Tensor:
        """|X'Y|^2 of all pairs (L, L), each X' at once with all Y: a few wide products and no small ones."""
        widths = [item.rows.shape[1] for item in items]
        joined = torch.cat([item.rows for item in items], 1)
        inner = items[0].diagonal.new_zeros(len(items), len(items))
        start = 0
        for i, width in enumerate(widths):
            columns = (joined[:, start : start + width].T @ joined[:, start:]).double().square_().sum(0)
            inner[i, i:] = inner[i:, i] = torch.stack([part.sum() for part in columns.split(widths[i:])])
            start += width
        if self.debiased:
            d = torch.stack([item.diagonal for item in items])
            n, total = d.shape[1], d.sum(1)
            inner += torch.outer(total, total) / ((n - 1) * (n - 2)) - d @ d.T * (n / (n - 2))
        return inner


@dataclass(frozen=True)
class CKADebiased(CKA):
    """CKA from the unbiased HSIC estimator, in [-1, 1]: near 0 for unrelated representations of any width.

    The cosine of U-centred Gram matrices (zero diagonal, zero row sums) of centred features; at least 4 rows.

    Source: Song, Smola, Gretton, Bedo, Borgwardt 2012, JMLR 13, for HSIC; Szekely, Rizzo 2014, arXiv:1310.2926, for
    U-centring.

    >>> g = torch.Generator().manual_seed(0)
    >>> X, Y = torch.randn(100, 400, generator=g), torch.randn(100, 400, generator=g)
    >>> round(CKA()(X, Y), 1), round(abs(CKADebiased()(X, Y)), 1)
    (0.8, 0.0)
    """

    id = "cka_debiased"
    range = (-1.0, 1.0)
    minimum_rows = 4
    undefined = "a representation is the same for all inputs, or has all inputs equally far apart"
    debiased = True


@dataclass(frozen=True)
class CKAAngular(CKA):
    """The angle between centred Gram matrices, arccos(cka), in [0, pi/2]; a metric, 0 = equal.

    Source: Williams, Kunz, Kornblith, Linderman 2021, arXiv:2110.14739.

    >>> X = torch.eye(4)[:, :2]
    >>> round(CKAAngular()(X, X[:, :1]), 4)
    0.7297
    """

    id = "cka_angular"
    range = (0.0, math.pi / 2)
    larger_is_more_similar = False
    is_metric = True

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        return (inner / (size_a * size_b).sqrt()).clamp(0.0, 1.0).arccos()


@dataclass(frozen=True)
class CKARBF(Alignment):
    """CKA with a Gaussian kernel, in [0, 1] (`debiased`: [-1, 1]), 1 = equal up to rotation, scale, shift.

    k(a, b) = exp(-|a - b|^2 / (2 threshold^2 med)) for rows a, b of X (N, D); med is the median of all N^2
    squared distances, zeros included. Raises ValueError for a threshold that is not positive.

    Source: Kornblith, Norouzi, Lee, Hinton 2019, arXiv:1905.00414.

    >>> X = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    >>> round(CKARBF(threshold=0.5)(X, X**2), 4)
    0.9442
    """

    threshold: float = 1.0
    debiased: bool = False

    id = "cka_rbf"
    cost = "prepare: the N x N centred kernel matrix, O(N^2 D) and a median of N^2 numbers; pair: O(N^2)"
    undefined = "in a representation the median distance is zero, or all inputs are equally far apart"

    def _configure(self) -> None:
        super()._configure()
        self._require("threshold", 0 < self.threshold < math.inf, "positive")

    def _prepare(self, X: Tensor) -> Vector:
        K = gaussian(X, self.threshold)
        trace = K.diagonal().sum()
        return self._vector(centred_kernel_(K, self.debiased), trace)


def gaussian(X: Tensor, threshold: float) -> Tensor:
    """exp(-|a - b|^2 / (2 threshold^2 med)) for rows a, b of X (N, D), med the median; NaN where med is zero."""
    rows = unit_scaled_(centred(X))
    squares = rows.square().sum(1)
    distances = (squares + squares[:, None]).addmm_(rows, rows.T, alpha=-2).clamp_(min=0)
    distances.diagonal().zero_()
    n, flat = len(rows), distances.flatten()
    lower = flat.kthvalue((n * n + 1) // 2).values  # torch.median stops here; numpy averages the middle two
    median = (lower + flat.kthvalue(n * n // 2 + 1).values) / 2
    median = torch.where(median > 16 * torch.finfo(rows.dtype).eps * squares.max(), median, math.nan)
    return distances.div_(-2 * threshold**2 * median).exp_()


def centred_kernel_(K: Tensor, debiased: bool = False) -> Tensor:
    """A symmetric matrix (N, N) without its row and column means, in place; `debiased`: U-centred, zero diagonal."""
    n = len(K)
    if debiased:
        K.diagonal().zero_()
        sums = K.sum(0)
        shift = sums / (n - 2) - sums.sum() / (2 * (n - 1) * (n - 2))
    else:
        shift = K.mean(0)
        shift = shift - shift.mean() / 2
    K.sub_(shift).sub_(shift[:, None])
    if debiased:
        K.diagonal().zero_()
    return K
