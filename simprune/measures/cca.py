"""Canonical correlations: how much of the directions of one representation lies in the span of another.

X (N, D) and Y (N, D') are centred; Q, Q' are orthonormal bases of their columns, of rank r and r' without
directions that are only rounding; rho_1 >= rho_2 >= ... are the singular values of Q'Q', c = min(r, r') of them.
With N - 1 <= r every rho is 1, whatever the other side is: that is warned about.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import Distance, Measure
from simprune.measures._factors import Basis, FactorProduct, angle, basis, gap, warn_if_spanning
from simprune.measures._products import Vector, centred

AFFINE = frozenset({"PT", "OT", "IS", "ILT", "TR", "AT"})
EQUAL = 1e-10  # correlations this close are one that occurs several times
SVD = "prepare: an orthonormal basis (N, r), one SVD, O(N D min(N, D))"


def centred_basis(measure: Measure, X: Tensor) -> Basis:
    factors = basis(unit_scaled_(centred(X)))
    warn_if_spanning(measure, len(factors.s), len(X))
    return factors


def correlations(U: Tensor, V: Tensor) -> Tensor:
    """Canonical correlations of the spans of orthonormal U (N, r) and V (N, r'), largest first."""
    return torch.linalg.svdvals(U.T @ V).clamp(max=1.0)


class Subspace(NamedTuple):
    """An orthonormal basis (N, r) of a representation that had `width` units."""

    basis: Tensor
    width: int


@dataclass(frozen=True)
class Canonical(Measure):
    """Measures of canonical correlations."""

    invariant_to = AFFINE
    cost = f"{SVD}; pair: singular values of an r x r' product, O(N r r' + r^3)"
    undefined = "a representation is the same for all inputs"


@dataclass(frozen=True)
class MeanCCA(Canonical):
    """Mean canonical correlation in [0, 1], 1 = one span contains the other.

    sum(rho) / min(r, r') for X (N, D), Y (N, D') of rank r, r'; `denominator="dim"` divides by min(D, D') instead,
    so that a dead unit counts as a correlation of 0. Needs N well above D + D'; a DegenerateWarning says where
    N is too small. Raises ValueError for any other denominator.

    Source: Hotelling 1936, Biometrika 28; Raghu, Gilmer, Yosinski, Sohl-Dickstein 2017, arXiv:1706.05806.

    >>> X = torch.eye(5)[:, :2]
    >>> round(MeanCCA()(X, X[:, :1]), 4), round(MeanCCA()(X[:, :1], X[:, 1:]), 4)
    (1.0, 0.25)
    """

    denominator: str = "rank"

    id = "mean_cca"

    def _configure(self) -> None:
        self._require("denominator", self.denominator in ("rank", "dim"), '"rank" or "dim"')

    def _prepare(self, X: Tensor) -> Subspace:
        return Subspace(centred_basis(self, X).U, X.shape[1])

    def _compare(self, a: Subspace, b: Subspace) -> Tensor:
        rho = correlations(a.basis, b.basis)
        share = 1.0 if self.denominator == "rank" else len(rho) / min(a.width, b.width)
        return rho.mean() * share  # the mean of no correlations is NaN


@dataclass(frozen=True)
class MeanSquaredCCA(Canonical, FactorProduct):
    """Mean squared canonical correlation in [0, 1], 1 = one span contains the other.

    |Q'Q'|^2 / min(r, r') for X (N, D), Y (N, D') of rank r, r'. Needs N well above D + D'; a DegenerateWarning says
    where N is too small.

    Source: Yanai 1974, Behaviormetrika 1, generalized coefficient of determination; Kornblith, Norouzi, Lee, Hinton
    2019, arXiv:1905.00414.

    >>> X = torch.eye(5)[:, :2]
    >>> round(MeanSquaredCCA()(X[:, :1], X[:, 1:]), 4)
    0.0625
    """

    id = "mean_squared_cca"
    cost = f"{SVD}; pair: an r x r' product, O(N r r'); all pairs: that, or one product of N x N projectors"

    def _prepare(self, X: Tensor) -> Vector:
        U = centred_basis(self, X).U
        rank = U.shape[1]
        return Vector(len(X), U.new_tensor(rank if rank else math.nan), (U, U))

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        return (inner / torch.minimum(size_a, size_b)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class CCAAngularDistance(Canonical, Distance):
    """Angle between whitened representations, arccos(sum(rho) / sqrt(r r')), in [0, pi/2]; a metric, 0 = same span.

    X (N, D), Y (N, D') of rank r, r'. Needs N well above D + D'; a DegenerateWarning says where N is too small.

    Source: Williams, Kunz, Kornblith, Linderman 2021, arXiv:2110.14739.

    >>> X = torch.eye(5)[:, :2]
    >>> round(CCAAngularDistance()(X, X[:, :1]), 4)
    0.7854
    """

    id = "cca_angular_distance"
    range = (0.0, math.pi / 2)
    is_metric = True

    def _prepare(self, X: Tensor) -> Tensor:
        U = centred_basis(self, X).U
        return U / max(U.shape[1], 1) ** 0.5

    def _compare(self, a: Tensor, b: Tensor) -> Tensor:
        return angle(gap(a, b)) if a.shape[1] and b.shape[1] else a.new_tensor(math.nan)


@dataclass(frozen=True)
class SVCCA(Canonical):
    """`mean_cca` of the leading principal components, in [0, 1], 1 = one leading span contains the other.

    On each side the fewest components that hold the share `threshold` of the variance. X (N, D), Y (N, D').
    A DegenerateWarning says where N is too small. Raises ValueError for a threshold outside (0, 1].

    Source: Raghu, Gilmer, Yosinski, Sohl-Dickstein 2017, arXiv:1706.05806.

    >>> X = torch.tensor([[10.0, 0.0], [-10.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(SVCCA(threshold=0.9)(X, X[:, 1:]), 4), round(SVCCA(threshold=1.0)(X, X[:, 1:]), 4)
    (0.0, 1.0)
    """

    threshold: float = 0.99

    id = "svcca"
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    cost = "prepare: k leading components (N, k), one SVD, O(N D min(N, D)); pair: O(N k k' + k^3)"

    def _configure(self) -> None:
        self._require("threshold", 0 < self.threshold <= 1, "above 0 and at most 1")

    def _prepare(self, X: Tensor) -> Tensor:
        U, s, _ = basis(unit_scaled_(centred(X)))
        # Variance from every component on, summed from the small end: exact where a running total would round.
        rest = s.square().flip(0).cumsum(0).flip(0)
        leading = int((rest > (1 - self.threshold) * rest[:1]).sum())
        warn_if_spanning(self, leading, len(X))
        return U[:, :leading]

    def _compare(self, a: Tensor, b: Tensor) -> Tensor:
        return correlations(a, b).mean()  # the mean of no correlations is NaN


class Variates(NamedTuple):
    """An orthonormal basis (N, r) of X, and X in it (r, D)."""

    basis: Tensor
    units: Tensor


@dataclass(frozen=True)
class PWCCA(Canonical):
    """Canonical correlations weighted by how much of a representation they account for, in [0, 1].

    sum(alpha rho) / sum(alpha), alpha_i = sum_j |<h_i, x_j>| over the units x_j of one side and its canonical
    variates h_i. X (N, D), Y (N, D'). `weights` names that side: "first" (then it is not symmetric), "second",
    "smaller" (of lower rank; the first if equal) or "mean" of both. `invariant_to` is that of the first argument.
    Where several rho are equal (as many are 1 where r + r' >= N), their variates are only determined up to a rotation;
    the principal axes of X among them are taken. A DegenerateWarning says where N is too small.
    Raises ValueError for other `weights`.

    Source: Morcos, Raghu, Bengio 2018, arXiv:1806.05759.

    >>> X = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> Y = X + torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    >>> round(PWCCA()(X, Y), 4), round(PWCCA(weights="second")(X, Y), 4)
    (0.9633, 0.957)
    """

    weights: str = "first"

    id = "pwcca"
    symmetric = False
    invariant_to = frozenset({"PT", "IS", "TR"})
    cost = (
        "prepare: an orthonormal basis (N, r) and the units in it (r, D), one SVD; pair: an r x r' SVD, O(N r r' + r^3)"
    )

    def _configure(self) -> None:
        known = ("first", "second", "smaller", "mean")
        self._require("weights", self.weights in known, '"first", "second", "smaller" or "mean"')
        if self.weights == "second":
            self._declare(invariant_to=AFFINE)
        if self.weights == "mean":
            self._declare(symmetric=True)

    def _prepare(self, X: Tensor) -> Variates:
        U, s, Vt = centred_basis(self, X)
        return Variates(U, s[:, None] * Vt)

    def _compare(self, a: Variates, b: Variates) -> Tensor:
        U, rho, Vt = torch.linalg.svd(a.basis.T @ b.basis, full_matrices=False)
        rho = rho.clamp(max=1.0)

        def weighted(directions: Tensor, units: Tensor) -> Tensor:
            alpha = (_settled(directions, rho, units).T @ units).abs().sum(1)
            return (alpha @ rho / alpha.sum()).clamp(max=1.0)  # NaN without any

        smaller = "first" if len(a.units) <= len(b.units) else "second"
        side = smaller if self.weights == "smaller" else self.weights
        if side == "mean":
            return (weighted(U, a.units) + weighted(Vt.T, b.units)) / 2
        return weighted(U, a.units) if side == "first" else weighted(Vt.T, b.units)


def _settled(directions: Tensor, rho: Tensor, units: Tensor) -> Tensor:
    """`directions` (r, c), those of equal `rho` turned to the principal axes of `units` (r, D) in their span."""
    breaks = ((rho[:-1] - rho[1:] > EQUAL).nonzero().flatten() + 1).tolist()
    groups = directions.tensor_split(breaks, 1)
    return torch.cat(
        [g if g.shape[1] < 2 else g @ torch.linalg.svd(g.T @ units, full_matrices=False).U for g in groups], 1
    )
