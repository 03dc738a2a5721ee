"""What second moments say about a pair of representations: measures that need no rows.

`FORMS[id](measure, moments)` gives the values of all pairs (L, L), or for a statistic the value of each
representation (L,). Equal to the measure on the rows up to rounding, except that moments square the condition
number: directions below `CUT` of the largest variance count as absent here, and only below rounding there.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CUT = 1e-10  # of the largest eigenvalue of a scatter matrix

FORMS: dict[str, Callable[[Any, "Joint"], Tensor]] = {}


class Spectrum(NamedTuple):
    """Eigenvalues (r,) above the cut, largest first, and their eigenvectors (D, r)."""

    values: Tensor
    vectors: Tensor


class Joint:
    """Moments of L representations of the same `count` inputs, their W = D_1 + ... + D_L units side by side.

    `product` (W, W) is the sum over inputs of (x - mean)(x - mean)^T. Only some measures need the rest:
    `lengths` (L,) and `length_products` (L, L), sums over inputs of the squared lengths of centred rows and of
    products of two; `class_sums` (C, W) of unit rows, and the `class_counts` (C,).
    """

    def __init__(self, count: int, mean: Tensor, product: Tensor, widths: tuple[int, ...], **extra: Tensor):
        self.count, self.mean, self.product, self.widths, self.extra = count, mean, product, widths, extra
        self._spectra: dict[int, Spectrum] = {}

    def __len__(self) -> int:
        return len(self.widths)

    @cached_property
    def slices(self) -> list[slice]:
        ends = torch.tensor(self.widths).cumsum(0).tolist()
        return [slice(end - width, end) for end, width in zip(ends, self.widths, strict=True)]

    @cached_property
    def uncentred(self) -> "Joint":
        raw = self.product + self.count * torch.outer(self.mean, self.mean)
        return Joint(self.count, self.mean, raw, self.widths)

    def block(self, i: int, j: int) -> Tensor:
        """X'Y (D, D')."""
        return self.product[self.slices[i], self.slices[j]]

    @cached_property
    def owner(self) -> Tensor:
        """(W, L), 1 where a unit belongs to a representation: multiplying sums over each one's units."""
        owner = self.mean.new_zeros(len(self.mean), len(self))
        for column, part in enumerate(self.slices):
            owner[part, column] = 1.0
        return owner

    @cached_property
    def squares(self) -> Tensor:
        """|X'Y|^2 (L, L)."""
        return self.owner.T @ self.product.square() @ self.owner

    @cached_property
    def traces(self) -> Tensor:
        """|X|^2 (L,)."""
        return self.product.diagonal() @ self.owner

    def spectrum(self, i: int) -> Spectrum:
        if i not in self._spectra:
            values, vectors = torch.linalg.eigh(self.block(i, i))
            kept = values > CUT * values[-1].clamp(min=0)
            self._spectra[i] = Spectrum(values[kept].flip(0), vectors[:, kept].flip(1))
        return self._spectra[i]

    def rank(self, i: int) -> int:
        return len(self.spectrum(i).values)

    def white(self, i: int, keep: int | None = None) -> Tensor:
        """The map (D, r) after which the columns of X are orthonormal."""
        values, vectors = self.spectrum(i)
        return vectors[:, :keep] * values[:keep].rsqrt()

    def canonical(self, i: int, j: int) -> Tensor:
        """Canonical correlations, largest first."""
        return _singular(self.white(i).T @ self.block(i, j) @ self.white(j)).clamp(0, 1)

    def pairs(self, value: Callable[[int, int], Tensor], symmetric: bool = True) -> Tensor:
        """`value(i, j)` for all pairs: (L, L)."""
        result = self.product.new_empty(len(self), len(self))
        for i in range(len(self)):
            for j in range(i if symmetric else 0, len(self)):
                result[i, j] = value(i, j)
                if symmetric:
                    result[j, i] = result[i, j]
        return result

    @cached_property
    def nuclear(self) -> Tensor:
        """|X'Y|_* (L, L), the sum of singular values."""
        return self.pairs(lambda i, j: self.traces[i] if i == j else _singular(self.block(i, j)).sum())

    def correlation(self, i: int, j: int) -> Tensor:
        """Correlations (D, D') of units, 0 for a constant one."""
        scale = self.product.diagonal().rsqrt()
        scale = torch.where(scale.isfinite(), scale, 0.0)
        return self.block(i, j) * scale[self.slices[i], None] * scale[None, self.slices[j]]


def _form(*ids: str):
    def register(function):
        for id in ids:
            FORMS[id] = function
        return function

    return register


def _singular(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix) if matrix.numel() else matrix.new_zeros(0)


def _outer(values: Tensor) -> Tensor:
    root = values.sqrt()
    return root[:, None] * root


# ---- one number per pair of blocks ----


@_form("cka", "cka_debiased", "cka_angular")
def _cka(measure, m: Joint) -> Tensor:
    inner, n = m.squares, m.count
    if measure.debiased:
        lengths = m.extra["lengths"]
        corner = torch.outer(lengths, lengths) / ((n - 1) * (n - 2))
        inner = inner - m.extra["length_products"] * (n / (n - 2)) + corner
    size = inner.diagonal()
    size = torch.where(size > 64 * torch.finfo(size.dtype).eps * m.squares.diagonal(), size, math.nan)
    return measure._score(inner, size[:, None], size)


@_form("normalized_bures")
def _bures(measure, m: Joint) -> Tensor:
    return (m.nuclear / _outer(m.traces)).clamp(0, 1)


@_form("angular_shape_metric")
def _angular(measure, m: Joint) -> Tensor:
    return _bures(measure, m).arccos()


@_form("orthogonal_procrustes")
def _procrustes(measure, m: Joint) -> Tensor:
    return (2 - 2 * _bures(measure, m)).sqrt()


@_form("procrustes_size_shape")
def _size_shape(measure, m: Joint) -> Tensor:
    return (m.traces[:, None] + m.traces - 2 * m.nuclear).clamp(min=0).sqrt()


@_form("procrustes_raw")
def _procrustes_raw(measure, m: Joint) -> Tensor:
    return _size_shape(measure, m.uncentred)


@_form("partial_whitening_shape_metric")
def _partial_whitening(measure, m: Joint) -> Tensor:
    maps = []
    for i in range(len(m)):
        values, vectors = m.spectrum(i)
        maps.append((vectors * (measure.alpha + (1 - measure.alpha) * values.rsqrt())) @ vectors.T)
    size = torch.stack([(each @ m.block(i, i) @ each).trace() for i, each in enumerate(maps)])
    inner = m.pairs(lambda i, j: _singular(maps[i] @ m.block(i, j) @ maps[j]).sum())
    return (inner / _outer(size)).clamp(0, 1).arccos()


# ---- subspaces: whitened blocks ----


def _shares(measure, m: Joint, i: int, j: int) -> int:
    """What canonical correlations are averaged over."""
    if measure.denominator == "dim":
        return min(m.widths[i], m.widths[j])
    return min(m.rank(i), m.rank(j))


@_form("mean_cca")
def _mean_cca(measure, m: Joint) -> Tensor:
    return m.pairs(lambda i, j: m.canonical(i, j).sum() / _shares(measure, m, i, j))


@_form("mean_squared_cca")
def _mean_squared_cca(measure, m: Joint) -> Tensor:
    return m.pairs(lambda i, j: m.canonical(i, j).square().sum() / min(m.rank(i), m.rank(j)))


@_form("cca_angular_distance")
def _cca_angle(measure, m: Joint) -> Tensor:
    def angle(i: int, j: int) -> Tensor:
        return (m.canonical(i, j).sum() / math.sqrt(m.rank(i) * m.rank(j))).clamp(0, 1).arccos()

    return m.pairs(angle)


@_form("svcca")
def _svcca(measure, m: Joint) -> Tensor:
    whites = []
    for i in range(len(m)):
        shares = m.spectrum(i).values.cumsum(0)
        keep = int((shares < measure.threshold * shares[-1:]).sum()) + 1
        whites.append(m.white(i, keep))

    def mean(i: int, j: int) -> Tensor:
        rho = _singular(whites[i].T @ m.block(i, j) @ whites[j]).clamp(0, 1)
        return rho.sum() / len(rho) if len(rho) else rho.new_tensor(math.nan)

    return m.pairs(mean)


@_form("pwcca")
def _pwcca(measure, m: Joint) -> Tensor:
    def weighted(i: int, j: int) -> Tensor:
        U, rho, Vt = torch.linalg.svd(m.white(i).T @ m.block(i, j) @ m.white(j), full_matrices=False)
        first = (U.T @ m.white(i).T @ m.block(i, i)).abs().sum(1)
        second = (Vt @ m.white(j).T @ m.block(j, j)).abs().sum(1)
        return measure._weigh(rho.clamp(0, 1), first, second)

    return m.pairs(weighted, measure.symmetric)


@_form("eigenspace_overlap")
def _eigenspace(measure, m: Joint) -> Tensor:
    raw = m.uncentred
    return m.pairs(lambda i, j: raw.canonical(i, j).square().sum() / max(m.widths[i], m.widths[j]))


@_form("linear_regression")
def _linear_regression(measure, m: Joint) -> Tensor:
    def explained(i: int, j: int) -> Tensor:
        target, predictor = (i, j) if measure.target == "first" else (j, i)
        return ((m.white(predictor).T @ m.block(predictor, target)).square().sum() / m.traces[target]).clamp(0, 1)

    return m.pairs(explained, symmetric=False)


@_form("gulp")
def _gulp(measure, m: Joint) -> Tensor:
    maps, sizes = [], []
    for i in range(len(m)):
        values, vectors = m.spectrum(i)
        share = values / m.traces[i]
        maps.append(vectors * (share + measure.lam).rsqrt() / m.traces[i].sqrt())
        sizes.append((share / (share + measure.lam)).square().sum())

    def distance(i: int, j: int) -> Tensor:
        inner = (maps[i].T @ m.block(i, j) @ maps[j]).square().sum()
        return (sizes[i] + sizes[j] - 2 * inner).clamp(min=0).sqrt()

    return m.pairs(distance)


# ---- matched units ----


def _assigned(gain: Tensor) -> Tensor:
    """The largest sum of entries with at most one per row and column, min(D, D') of them."""
    rows, columns = linear_sum_assignment(gain.cpu().numpy(), maximize=True)
    return gain[torch.from_numpy(rows), torch.from_numpy(columns)].sum()


@_form("permutation_procrustes")
def _permutation_procrustes(measure, m: Joint) -> Tensor:
    m = m if measure.center else m.uncentred
    inner = m.pairs(lambda i, j: _assigned(m.block(i, j)))
    return (m.traces[:, None] + m.traces - 2 * inner).clamp(min=0).sqrt()


@_form("permutation_angular")
def _permutation_angular(measure, m: Joint) -> Tensor:
    m = m if measure.center else m.uncentred
    return (m.pairs(lambda i, j: _assigned(m.block(i, j))) / _outer(m.traces)).clamp(-1, 1).arccos()


@_form("hard_correlation_match")
def _hard_match(measure, m: Joint) -> Tensor:
    return m.pairs(lambda i, j: _assigned(m.correlation(i, j)) / min(m.widths[i], m.widths[j]))


@_form("soft_correlation_match")
def _soft_match(measure, m: Joint) -> Tensor:
    def mean(i: int, j: int) -> Tensor:
        C = m.correlation(i, j)
        return (C.amax(0).mean() + C.amax(1).mean()) / 2

    return m.pairs(mean)


# ---- statistics: one value per representation ----


@_form("magnitude")
def _magnitude(measure, m: Joint) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(m.mean[part]) for part in m.slices])


@_form("participation_ratio")
def _participation_ratio(measure, m: Joint) -> Tensor:
    return m.traces.square() / m.squares.diagonal()


@_form("tolerance")
def _tolerance(measure, m: Joint) -> Tensor:
    same = m.extra["class_sums"].square() @ m.owner  # (classes, L)
    return same.sum(0) / m.count**2
