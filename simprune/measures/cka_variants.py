"""Centred kernel alignment of batches, of sparse graphs, and without the similarities of the inputs themselves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simprune.core.neighbours import directions, largest, unit_scaled_
from simprune.measures._products import Vector, centred, unit_norm
from simprune.measures._rows import warn_of_zero_rows
from simprune.measures.cka import Alignment, centred_kernel_, gaussian, kernel_vector


@dataclass(frozen=True)
class CKAMinibatch(Alignment):
    """CKA from sums of the unbiased HSIC over consecutive batches of rows, in [-1, 1]; near 0 if unrelated.

    sum HSIC(K, L) / sqrt(sum HSIC(K, K) sum HSIC(L, L)), every batch of X (N, D), Y (N, D') weighing the same, the
    last and smaller one too. Shuffle rows that come in an order. Raises ValueError for a batch of fewer than 4 rows.

    Source: Nguyen, Raghu, Kornblith 2021, arXiv:2010.15327.

    >>> X = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    >>> round(CKAMinibatch(batch_size=16)(X[:48], 2 * X[:48] + 1), 4)
    1.0
    """

    batch_size: int

    id = "cka_minibatch"
    range = (-1.0, 1.0)
    minimum_rows = 4
    cost = "prepare: one Gram matrix per batch of B rows, N x B numbers, O(N B D); pair: O(N B)"
    undefined = "in every batch, a representation is the same for all inputs or has them equally far apart"

    def _configure(self) -> None:
        self._require("batch_size", self.batch_size >= 4, "at least 4")

    def _prepare(self, X: Tensor) -> Vector:
        last = len(X) % self.batch_size
        if 0 < last < 4:
            raise ValueError(
                f"cka_minibatch: every batch needs at least 4 rows, but {len(X)} rows in batches of {self.batch_size} "
                f"leave {last} for the last one: choose another batch_size or leave rows out"
            )
        rows = unit_scaled_(centred(X))
        blocks = rows.new_zeros(len(X), min(self.batch_size, len(X)))
        scale = rows.new_zeros(())
        for start in range(0, len(X), self.batch_size):
            batch = centred(rows[start : start + self.batch_size])
            n = len(batch)
            K = batch @ batch.T
            weight = 1 / math.sqrt(n * (n - 3))
            scale = scale + (K.trace() * weight).square()
            blocks[start : start + n, :n] = weight * centred_kernel_(K, debiased=True)
        return kernel_vector(blocks, scale.sqrt())


@dataclass(frozen=True)
class CKASparse(Alignment):
    """CKA of sparse graphs: each row of the kernel matrix keeps its `top` largest entries; in [-1, 1], 1 = equal.

    The diagonal counts as an entry; the rest becomes 0, then <HKH, HLH> / (|HKH| |HLH|) as in `cka`. Kernels of rows
    of X (N, D): "cosine", "linear" (dot products, not centred), "rbf" (as `cka_rbf`). Entries equal up to rounding
    keep the lower index. Raises ValueError for another kernel, for top < 1 and for fewer rows than `top`.

    Source: Chen et al. 2021, Graph-Based Similarity of Neural Network Representations, arXiv:2111.11165.

    >>> X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    >>> round(CKASparse(top=4)(X, -3 * X), 4)
    1.0
    """

    top: int
    kernel: str = "cosine"

    id = "cka_sparse"
    range = (-1.0, 1.0)
    invariant_to = frozenset({"PT", "OT", "IS"})
    cost = "prepare: the N x N centred sparse kernel, O(N^2 D); pair: O(N^2)"
    undefined = "the kept entries are equal in all rows and columns, or the median distance is zero (rbf)"

    def _configure(self) -> None:
        self._require("kernel", self.kernel in ("cosine", "linear", "rbf"), '"cosine", "linear" or "rbf"')
        self._require("top", self.top >= 1, "at least 1")
        self._declare(minimum_rows=max(2, self.top))
        if self.kernel == "rbf":
            self._declare(invariant_to=frozenset({"PT", "OT", "IS", "TR"}))

    def _prepare(self, X: Tensor) -> Vector:
        if self.kernel == "rbf":
            full = gaussian(X, 1.0)
        else:
            if self.kernel == "cosine":
                warn_of_zero_rows(self, X)
            rows = directions(X) if self.kernel == "cosine" else unit_scaled_(X.clone())
            full = rows @ rows.T
        bound = full.abs().max()
        top = largest((full / torch.where(bound > 0, bound, 1.0)).nan_to_num(), self.top)
        K = torch.zeros_like(full).scatter_(1, top, full.gather(1, top))
        scale = torch.linalg.vector_norm(K)
        K = K - K.mean(0)
        return kernel_vector(K - K.mean(1, keepdim=True), scale)


@dataclass(frozen=True)
class CKADeconfounded(Alignment):
    """CKA of what the inputs' own similarities do not explain, in [0, 1] (`psd=False`: [-1, 1]), 1 = equal.

    X (N, D) and `confounder` Z (N, any), usually the inputs, are centred and scaled to norm 1; K = X X' loses its
    least-squares multiple of Z Z', then its negative eigenvalues unless `psd=False`; the rest is compared as in `cka`.

    Source: Cui, Kumar, Marttinen, Kaski 2022, arXiv:2202.00095.

    >>> X, Y, Z = torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> shared = [torch.cat([rows, 5 * Z], 1) for rows in (X, Y)]
    >>> from simprune import measures
    >>> round(measures.get("cka")(*shared), 1), round(CKADeconfounded()(*shared, confounder=Z), 1)
    (1.0, 0.1)
    """

    psd: bool = True

    id = "cka_deconfounded"
    extras = ("confounder",)
    cost = "prepare: the N x N residual kernel, O(N^2 D) and one eigendecomposition, O(N^3); pair: O(N^2)"
    undefined = "a representation is the same for all inputs, or has the similarities of the confounder"

    def _configure(self) -> None:
        if not self.psd:
            self._declare(range=(-1.0, 1.0))

    def _prepare(self, X: Tensor, confounder: Tensor) -> Vector:
        K, K0 = _unit_gram(X), _unit_gram(confounder)
        scale, square = torch.linalg.vector_norm(K), K0.square().sum()
        # a constant confounder explains nothing
        K = K - K0 * torch.where(square > 0, (K0 * K).sum() / square, 0.0)
        if self.psd:
            values, vectors = torch.linalg.eigh(K)
            noise = len(K) * torch.finfo(K.dtype).eps * scale
            K = (vectors * torch.where(values > noise, values, 0.0)) @ vectors.T
        return kernel_vector(K, scale)


def _unit_gram(X: Tensor) -> Tensor:
    rows = unit_norm(centred(X))
    return rows @ rows.T
