"""Measures that follow from the second moments of two representations and need no rows.

`FORMS[id](measure, moments)` gives the values of all pairs (L, L), or for a statistic the value of each
representation (L,). Equal to the measure on the rows up to rounding, except that moments square the condition
number: directions below `CUT` of the largest variance count as absent here, and only below rounding there.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simprune.measures._base import all_pairs
from simprune.measures._factors import angle
from simprune.measures.matching import assignment, transport

CUT = 1e-10  # of the largest eigenvalue of a scatter matrix

Form = Callable[[Any, "Joint"], Tensor]
FORMS: dict[str, Form] = {}


class Spectrum(NamedTuple):
    """Eigenvalues (r,) above the cut, largest first, and their eigenvectors (D, r)."""

    values: Tensor
    vectors: Tensor


class Joint:
    """Moments of L representations of the same `count` inputs, their W = D_1 + ... + D_L units side by side.

    `product` (W, W) is the sum over inputs of (x - mean)(x - mean)^T. Only some measures need the rest:
    `lengths` (L,) and `length_products` (L, L), sums over inputs of the squared lengths of centred rows and of
    products of two; `class_sums` (C, W) of rows scaled to length 1.
    """

    def __init__(self, count: int, mean: Tensor, product: Tensor, widths: tuple[int, ...], **extra: Tensor):
        self.count, self.mean, self.product, self.widths, self.extra = count, mean, product, widths, extra

    def __len__(self) -> int:
        return len(self.widths)

    @cached_property
    def slices(self) -> list[slice]:
        return [slice(sum(self.widths[:i]), sum(self.widths[: i + 1])) for i in range(len(self))]

    @cached_property
    def uncentred(self) -> "Joint":
        raw = self.product + self.count * torch.outer(self.mean, self.mean)
        return Joint(self.count, self.mean, raw, self.widths)

    def block(self, i: int, j: int) -> Tensor:
        """X'Y (D, D')."""
        return self.product[self.slices[i], self.slices[j]]

    @cached_property
    def owner(self) -> Tensor:
        """(W, L), 1 where a unit belongs to a representation: a product with it sums over the units of each."""
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

    @cached_property
    def spectra(self) -> list[Spectrum]:
        spectra = []
        for i in range(len(self)):
            values, vectors = torch.linalg.eigh(self.block(i, i))
            above = values > CUT * values[-1].clamp(min=0)
            spectra.append(Spectrum(values[above].flip(0), vectors[:, above].flip(1)))
        return spectra

    @cached_property
    def ranks(self) -> Tensor:
        """(L,), NaN instead of 0."""
        ranks = self.mean.new_tensor([len(spectrum.values) for spectrum in self.spectra])
        return torch.where(ranks > 0, ranks, math.nan)

    def white(self, i: int, keep: int | None = None) -> Tensor:
        """The map (D, r) after which the columns of X are orthonormal."""
        values, vectors = self.spectra[i]
        return vectors[:, :keep] * values[:keep].rsqrt()

    def canonical(self, i: int, j: int) -> Tensor:
        """Canonical correlations, largest first."""
        return _singular(self.white(i).T @ self.block(i, j) @ self.white(j)).clamp(0, 1)

    def pairs(self, value: Callable[[int, int], Tensor], symmetric: bool = True) -> Tensor:
        """`value(i, j)` for all pairs: (L, L)."""
        return all_pairs(value, len(self), symmetric)

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
    def register(function: Form) -> Form:
        FORMS.update(dict.fromkeys(ids, function))
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


@_form("normalized_bures", "angular_shape_metric", "orthogonal_procrustes", "procrustes_size_shape", "procrustes_raw")
def _rotation(measure, m: Joint) -> Tensor:
    m = m if measure.centre else m.uncentred
    return _rotated(measure, m.nuclear, m.traces)


def _rotated(measure, nuclear: Tensor, traces: Tensor) -> Tensor:
    norms = traces.sqrt()
    both = norms[:, None] * norms
    lost = torch.where(both == 0, 1.0 if measure.sizes_count else math.nan, 1 - nuclear / both)
    lost = torch.where(lost < 8 * torch.finfo(lost.dtype).eps, 0.0, lost)  # rounding, or a little below zero
    return measure._value(lost, norms[:, None], norms)


@_form("partial_whitening_shape_metric")
def _partial_whitening(measure, m: Joint) -> Tensor:
    maps = []
    for values, vectors in m.spectra:
        maps.append((vectors * (measure.alpha + (1 - measure.alpha) * values.rsqrt())) @ vectors.T)
    traces = torch.stack([(whitening @ m.block(i, i) @ whitening).trace() for i, whitening in enumerate(maps)])
    nuclear = m.pairs(lambda i, j: traces[i] if i == j else _singular(maps[i] @ m.block(i, j) @ maps[j]).sum())
    return _rotated(measure, nuclear, traces)


# ---- subspaces: whitened blocks ----


@_form("mean_cca")
def _mean_cca(measure, m: Joint) -> Tensor:
    def mean(i: int, j: int) -> Tensor:
        rho = m.canonical(i, j)
        if not len(rho):
            return rho.new_tensor(math.nan)
        return rho.sum() / (len(rho) if measure.denominator == "rank" else min(m.widths[i], m.widths[j]))

    return m.pairs(mean)


@_form("mean_squared_cca")
def _mean_squared_cca(measure, m: Joint) -> Tensor:
    inner = m.pairs(lambda i, j: m.canonical(i, j).square().sum())
    return measure._score(inner, m.ranks[:, None], m.ranks)


@_form("cca_angular_distance")
def _cca_angle(measure, m: Joint) -> Tensor:
    inner = m.pairs(lambda i, j: m.canonical(i, j).sum())
    return angle((1 - inner / _outer(m.ranks)).clamp(min=0))


@_form("svcca")
def _svcca(measure, m: Joint) -> Tensor:
    leading = []
    for i, spectrum in enumerate(m.spectra):
        rest = spectrum.values.flip(0).cumsum(0).flip(0)
        leading.append(m.white(i, int((rest > (1 - measure.threshold) * rest[:1]).sum())))
    return m.pairs(lambda i, j: _singular(leading[i].T @ m.block(i, j) @ leading[j]).clamp(max=1).mean())


@_form("pwcca")
def _pwcca(measure, m: Joint) -> Tensor:
    def weighted(i: int, j: int) -> Tensor:
        U, rho, Vt = torch.linalg.svd(m.white(i).T @ m.block(i, j) @ m.white(j), full_matrices=False)
        rho = rho.clamp(max=1)

        def by(directions: Tensor, k: int) -> Tensor:
            weights = (directions @ m.white(k).T @ m.block(k, k)).abs().sum(1)
            return weights @ rho / weights.sum()

        if measure.weights == "mean":
            return (by(U.T, i) + by(Vt, j)) / 2
        smaller = "first" if m.ranks[i] <= m.ranks[j] else "second"
        side = smaller if measure.weights == "smaller" else measure.weights
        return by(U.T, i) if side == "first" else by(Vt, j)

    return m.pairs(weighted, measure.symmetric)


@_form("eigenspace_overlap")
def _eigenspace(measure, m: Joint) -> Tensor:
    raw = m.uncentred
    return m.pairs(lambda i, j: raw.canonical(i, j).square().sum() / max(m.widths[i], m.widths[j]))


@_form("linear_regression")
def _linear_regression(measure, m: Joint) -> Tensor:
    def explained(i: int, j: int) -> Tensor:
        target, predictor = (i, j) if measure.target == "first" else (j, i)
        return (m.white(predictor).T @ m.block(predictor, target)).square().sum()

    variance = torch.where(m.traces > 0, m.traces, math.nan)
    return measure._score(m.pairs(explained, symmetric=False), variance[:, None], variance)


@_form("gulp")
def _gulp(measure, m: Joint) -> Tensor:
    maps, sizes = [], []
    for (values, vectors), trace in zip(m.spectra, m.traces, strict=True):
        share = values / trace
        maps.append(vectors * (share + measure.lam).rsqrt() / trace.sqrt())
        sizes.append((share / (share + measure.lam)).square().sum() if len(share) else share.new_tensor(math.nan))

    def distance(i: int, j: int) -> Tensor:
        if i == j:
            return 0 * sizes[i]
        inner = (maps[i].T @ m.block(i, j) @ maps[j]).square().sum()
        return (sizes[i] + sizes[j] - 2 * inner).clamp(min=0).sqrt()

    return m.pairs(distance)


# ---- matched units ----


def _matched(m: Joint) -> Tensor:
    """The largest <X P, Y> (L, L) over pairings P of units."""
    return m.pairs(lambda i, j: m.block(i, j)[assignment(m.block(i, j))].sum())


@_form("permutation_procrustes")
def _permutation_procrustes(measure, m: Joint) -> Tensor:
    m = m if measure.center else m.uncentred
    return (m.traces[:, None] + m.traces - 2 * _matched(m)).clamp(min=0).sqrt()


@_form("permutation_angular")
def _permutation_angular(measure, m: Joint) -> Tensor:
    m = m if measure.center else m.uncentred
    return (_matched(m) / _outer(m.traces)).clamp(-1, 1).arccos()


@_form("soft_matching_distance")
def _soft_matching_distance(measure, m: Joint) -> Tensor:
    squares = m.product.diagonal()

    def distance(i: int, j: int) -> Tensor:
        block = m.block(i, j)
        first, second, weight = transport(block)
        apart = squares[m.slices[i]][first] + squares[m.slices[j]][second] - 2 * block[first, second]
        return (apart.clamp(min=0) @ weight).sqrt()

    return m.pairs(distance)


@_form("hard_correlation_match", "soft_correlation_match", "soft_matching_correlation")
def _correlation(measure, m: Joint) -> Tensor:
    return m.pairs(lambda i, j: measure._value(m.correlation(i, j).clamp(-1, 1)))


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
