"""How alike two representations are after the best rotation, or the best linear map, of one onto the other.

The rotation never has to be formed: with X, Y of norm 1, min |X Q - Y|^2 = 2 - 2 |X'Y|_*, a nuclear norm. It does
not change when rows are expressed in other orthonormal coordinates, so at most min(N, D) of them are stored, and
representations of different widths need no padding.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import Distance, Measure
from simprune.measures._factors import FactorProduct, Shape, angle, basis, coordinates, gap, shape, warn_if_spanning
from simprune.measures._products import Vector, centred
from simprune.measures._rows import warn_of_zero_rows


@dataclass(frozen=True)
class Rotation(Distance):
    """Measures that are a function `_value` of 1 - |X'Y|_* / (|X| |Y|) and of the norms."""

    is_metric = True
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    cost = "prepare: rows in min(N, D) coordinates, at most one QR; pair: singular values of X'Y, O(N r r' + r^3)"
    undefined = "a representation is the same for all inputs"
    centre: ClassVar[bool] = True
    sizes_count: ClassVar[bool] = False  # then a zero representation has a value; otherwise it has no direction

    def _prepare(self, X: Tensor) -> Shape:
        return shape(centred(X) if self.centre else X)

    def _compare(self, a: Shape, b: Shape) -> Tensor:
        lost = gap(a.rows, b.rows)
        if not self.sizes_count:
            lost = torch.where((a.norm > 0) & (b.norm > 0), lost, math.nan)
        return self._value(lost, a.norm, b.norm)

    def _value(self, lost: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class OrthogonalProcrustes(Rotation):
    """Distance left after centring, scaling to norm 1 and the best rotation, in [0, sqrt(2)]; a metric, 0 = equal.

    sqrt(2 - 2 |X'Y|_* / (|X| |Y|)) for X (N, D), Y (N, D'): the root, where some authors report the square.

    Source: Ding, Denain, Steinhardt 2021, arXiv:2108.01661; Schönemann 1966.

    >>> X = torch.eye(4)[:, :2]
    >>> round(OrthogonalProcrustes()(X, X[:, :1]), 4)
    0.7136
    """

    id = "orthogonal_procrustes"
    range = (0.0, math.sqrt(2))

    def _value(self, lost: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
        return (2 * lost).sqrt().clamp(max=self.range[1])


@dataclass(frozen=True)
class ProcrustesSizeShape(Rotation):
    """Distance left after centring and the best rotation, in [0, inf); a metric, 0 = equal; sizes count.

    sqrt(|X|^2 + |Y|^2 - 2 |X'Y|_*) for X (N, D), Y (N, D'), in the units of the representations. Grows with N and D.

    Source: Williams, Kunz, Kornblith, Linderman 2021, arXiv:2110.14739.

    >>> X = torch.eye(4)[:, :2]
    >>> round(ProcrustesSizeShape()(X, 3 * X), 4)
    2.4495
    """

    id = "procrustes_size_shape"
    invariant_to = frozenset({"PT", "OT", "TR"})
    undefined = "never: every pair has a value"
    sizes_count = True

    def _value(self, lost: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
        return ((norm_a - norm_b).square() + 2 * norm_a * norm_b * lost).sqrt()


@dataclass(frozen=True)
class ProcrustesRaw(ProcrustesSizeShape):
    """Distance left after the best rotation and nothing else, in [0, inf); a metric, 0 = equal.

    min over rotations Q of |X Q - Y|, X (N, D) and Y (N, D') neither centred nor scaled.

    Source: Schönemann 1966, Psychometrika 31.

    >>> X = torch.eye(4)[:, :2]
    >>> round(ProcrustesRaw()(X, X[:, [1, 0]] + 1), 4)
    2.8284
    """

    id = "procrustes_raw"
    invariant_to = frozenset({"PT", "OT"})
    centre = False


@dataclass(frozen=True)
class AngularShapeMetric(Rotation):
    """Angle left after centring and the best rotation, arccos(normalized_bures), in [0, pi/2]; a metric, 0 = equal.

    arccos(|X'Y|_* / (|X| |Y|)) for X (N, D), Y (N, D').

    Source: Williams, Kunz, Kornblith, Linderman 2021, arXiv:2110.14739.

    >>> X = torch.eye(4)[:, :2]
    >>> round(AngularShapeMetric()(X, X[:, :1]), 4)
    0.7297
    """

    id = "angular_shape_metric"
    range = (0.0, math.pi / 2)

    def _value(self, lost: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
        return angle(lost)


@dataclass(frozen=True)
class NormalizedBures(Rotation):
    """Fidelity of the centred Gram matrices K and L, in [0, 1], 1 = equal up to rotation, scale and shift.

    tr (K^1/2 L K^1/2)^1/2 / sqrt(tr K tr L) = |X'Y|_* / (|X| |Y|) for X (N, D), Y (N, D').

    Source: Tang, Maddox, Dickens, Diethe, Damianou 2020, arXiv:2003.11498.

    >>> X = torch.eye(4)[:, :2]
    >>> round(NormalizedBures()(X, X[:, :1]), 4)
    0.7454
    """

    id = "normalized_bures"
    range = (0.0, 1.0)
    larger_is_more_similar = True
    is_metric = False

    def _value(self, lost: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
        return 1 - lost


@dataclass(frozen=True)
class PartialWhiteningShapeMetric(AngularShapeMetric):
    """`angular_shape_metric` after whitening in part, in [0, pi/2]; a metric, 0 = equal.

    Of X (alpha I + (1 - alpha) (X'X)^-1/2), X (N, D) centred: alpha = 1 whitens nothing, alpha = 0 entirely
    (`cca_angular_distance`). In between it depends on the scale of X. Raises ValueError for alpha outside [0, 1].

    Source: Williams, Kunz, Kornblith, Linderman 2021, arXiv:2110.14739.

    >>> X = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> [round(PartialWhiteningShapeMetric(alpha)(X, X[:, :1]), 4) for alpha in (0.0, 0.5, 1.0)]
    [0.7854, 0.4315, 0.3218]
    """

    alpha: float

    id = "partial_whitening_shape_metric"
    invariant_to = frozenset({"PT", "OT", "TR"})
    cost = "prepare: partly whitened coordinates (N, r), one SVD; pair: singular values, O(N r r' + r^3)"

    def _configure(self) -> None:
        self._require("alpha", 0 <= self.alpha <= 1, "from 0 to 1")
        if self.alpha in (0, 1):
            more = {"IS", "ILT", "AT"} if self.alpha == 0 else {"IS"}
            self._declare(invariant_to=self.invariant_to | more)

    def _prepare(self, X: Tensor) -> Shape:
        U, s, _ = basis(centred(X))
        if self.alpha == 0:
            warn_if_spanning(self, len(s), len(X))
        return shape(U * (self.alpha * s + (1 - self.alpha)))


@dataclass(frozen=True)
class LinearRegression(FactorProduct):
    """Share of one representation's variance that is linear in the other (R^2 in sample), in [0, 1].

    |Q'X|^2 / |X|^2, X (N, D) the predicted and Q a basis of the predictor, both centred. `target` says which one is
    predicted: the "first" argument (from the second) or the "second"; it is not symmetric, and `invariant_to` is
    that of the first argument. A DegenerateWarning says where N is so small that every predictor is perfect.
    Raises ValueError for another target.

    Source: Kornblith, Norouzi, Lee, Hinton 2019, arXiv:1905.00414.

    >>> X = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(LinearRegression()(X, X[:, :1]), 4), round(LinearRegression()(X[:, :1], X), 4)
    (0.9, 1.0)
    """

    target: str = "first"

    id = "linear_regression"
    symmetric = False
    invariant_to = frozenset({"PT", "OT", "IS", "TR"})
    cost = "prepare: a basis (N, r) and rows in it (N, r), one SVD; pair: O(N r r'); all pairs: that, or one product"
    undefined = "the predicted representation is the same for all inputs"

    def _configure(self) -> None:
        self._require("target", self.target in ("first", "second"), '"first" or "second"')
        if self.target == "second":
            self._declare(invariant_to=self.invariant_to | {"ILT", "AT"})

    def _prepare(self, X: Tensor) -> Vector:
        U, s, _ = basis(unit_scaled_(centred(X)))
        warn_if_spanning(self, len(s), len(X))
        predicted = U * s
        variance = predicted.square().sum()
        size = torch.where(variance > 0, variance, math.nan)
        return Vector(len(X), size, (predicted, U) if self.target == "first" else (U, predicted))

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        return (inner / (size_a if self.target == "first" else size_b)).clamp(0.0, 1.0)


class Rows(NamedTuple):
    """Rows (N, any) and their lengths (N,)."""

    rows: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class RowCosine(Measure):
    """Mean cosine of rows after an alignment of units, over inputs whose rows are zero on neither side."""

    range = (-1.0, 1.0)
    undefined = "in every row one of the representations is zero"

    def _prepare(self, X: Tensor) -> Rows:
        X = unit_scaled_(X.clone())
        warn_of_zero_rows(self, X, "are zero, have no direction and are left out")
        return Rows(self._coordinates(X), torch.linalg.vector_norm(X, dim=1))

    def _coordinates(self, X: Tensor) -> Tensor:
        return X

    def _compare(self, a: Rows, b: Rows) -> Tensor:
        lengths = a.lengths * b.lengths
        first, second = self._aligned(a.rows, b.rows)
        cosines = (first * second).sum(1) / torch.where(lengths > 0, lengths, 1.0)
        return (cosines.sum() / (lengths > 0).sum()).clamp(-1.0, 1.0)

    def _aligned(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Both with as many units, in which they are as close as possible."""
        raise NotImplementedError


@dataclass(frozen=True)
class AlignedCosine(RowCosine):
    """Mean cosine between rows after the best rotation, in [-1, 1], 1 = equal up to rotation and row lengths.

    mean_i cos(X_i Q, Y_i), Q = argmin |X Q - Y| over rotations; X (N, D), Y (N, D') not centred. Directions of
    either side that the other has nothing to do with are not aligned and count as orthogonal. Zero rows are left
    out, with a DegenerateWarning.

    Source: Hamilton, Leskovec, Jurafsky 2016, arXiv:1606.02821.

    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(AlignedCosine()(X, X[:, [1, 0]]), 4), round(AlignedCosine()(X, X.abs().sum(1)[:, None]), 4)
    (1.0, 0.8047)
    """

    id = "aligned_cosine"
    invariant_to = frozenset({"PT", "OT", "IS"})
    cost = "prepare: rows in min(N, D) coordinates, at most one QR; pair: an SVD of X'Y, O(N r r' + r^3)"

    def _coordinates(self, X: Tensor) -> Tensor:
        return coordinates(X)

    def _aligned(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        U, _, Vt = basis(X.T @ Y)
        return X @ U, Y @ Vt.T
