"""Spans and covariances: which directions of sample space a representation holds, and how strongly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import Distance
from simprune.measures._factors import FactorProduct, basis, warn_if_spanning
from simprune.measures._products import Vector, centred
from simprune.measures.rsm import Difference


@dataclass(frozen=True)
class EigenspaceOverlap(FactorProduct):
    """Overlap of the spans of X (N, D) and Y (N, D'), |U'V|^2 / max(D, D'), in [0, 1]; not centred.

    U, V are orthonormal bases of ranks r, r'; at most min(r, r') / max(D, D'), so below 1 for different widths, for
    dead units and for N < D, even for X and itself.

    Source: May, Zhang, Dao, Re 2019, arXiv:1909.01264.

    >>> X = torch.eye(5)[:, :3]
    >>> round(EigenspaceOverlap()(X, X[:, :2]), 4)
    0.6667
    """

    id = "eigenspace_overlap"
    invariant_to = frozenset({"PT", "OT", "IS", "ILT"})
    cost = "prepare: an orthonormal basis (N, r), one SVD, O(N D min(N, D)); pair: an r x r' product, O(N r r')"
    undefined = "a representation is zero for all inputs"

    def _prepare(self, X: Tensor) -> Vector:
        U = basis(unit_scaled_(X.clone())).U
        return Vector(len(X), U.new_tensor(X.shape[1] if U.shape[1] else math.nan), (U, U))

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        return (inner / torch.maximum(size_a, size_b)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class GULP(Difference, FactorProduct):
    """How differently ridge regressions with penalty `lam` predict from two representations, in [0, inf); a metric.

    |G - G'| for G = X (X'X/N + lam)^-1 X' / N, X (N, D) centred and scaled to mean squared row length 1. lam=0 gives
    sqrt(r + r' - 2 sum rho^2), invariant to affine transformations, and 0 for any two that span all N - 1 directions
    (a DegenerateWarning says so). Raises ValueError for negative lam.

    Source: Boix-Adsera, Lawrence, Stepaniants, Rigollet 2022, arXiv:2210.06545.

    >>> X = torch.eye(5)[:, :2]
    >>> round(GULP()(X, X[:, :1]), 4), round(GULP(lam=1.0)(X, X[:, :1]), 4)
    (1.0, 0.3601)
    """

    lam: float = 0.0

    id = "gulp"
    is_metric = True
    invariant_to = frozenset({"PT", "OT", "IS", "ILT", "TR", "AT"})
    cost = (
        "prepare: a factor of G (N, r), one SVD, O(N D min(N, D)); pair: O(N r r'), or O(N^2 r) where nearly equal; "
        "all pairs: that, or one product of N x N matrices"
    )
    undefined = "a representation is the same for all inputs"

    def _configure(self) -> None:
        self._require("lam", 0 <= self.lam < math.inf, "0 or positive")
        if self.lam > 0:
            self._declare(invariant_to=frozenset({"PT", "OT", "IS", "TR"}))

    def _prepare(self, X: Tensor) -> Vector:
        U, s, _ = basis(unit_scaled_(centred(X)))
        if self.lam == 0:
            warn_if_spanning(self, len(s), len(X))
        variances = s.square() / s.square().sum()
        shares = variances / (variances + self.lam)
        F = U * shares.sqrt()
        return Vector(len(X), shares.square().sum() if len(s) else U.new_tensor(math.nan), (F, F))


@dataclass(frozen=True)
class RiemannianDistance(Distance):
    """Geodesic distance of the Gram matrices S = X X' / D as positive definite matrices, in [0, inf); a metric.

    sqrt(sum_i log^2 lambda_i), lambda the generalised eigenvalues of S and S', X (N, D), Y (N, D'). Without `reg`
    both need N linearly independent rows, so D >= N; `reg` > 0 adds reg * identity to S and S', in squared units of
    the representations, and the distance depends on it. Raises ValueError for D < N without `reg`, and for reg <= 0.

    Source: Shahbazi, Shirali, Aghajan, Nili 2021, doi:10.1016/j.neuroimage.2021.118271.

    >>> X = torch.eye(3)
    >>> round(RiemannianDistance()(X, math.e * X), 4)
    3.4641
    """

    reg: float | None = None

    id = "riemannian_distance"
    is_metric = True
    invariant_to = frozenset({"PT", "OT"})
    cost = "prepare: a triangular factor (N, N) of S, O(N^2 max(N, D)); pair: a triangular solve and an SVD, O(N^3)"
    undefined = "rows of a representation are linearly dependent, which puts it infinitely far away: pass reg="

    def _configure(self) -> None:
        self._require("reg", self.reg is None or 0 < self.reg < math.inf, "positive or None")

    def _prepare(self, X: Tensor) -> Tensor:
        count, width = X.shape
        if self.reg is None and width < count:
            raise ValueError(
                f"riemannian_distance needs at least as many units as rows, got {count} rows of {width} units: pass "
                "reg= to add reg * identity to the Gram matrices, or use fewer rows"
            )
        rows = X / math.sqrt(width)
        if self.reg is not None:
            rows = torch.cat([rows, math.sqrt(self.reg) * torch.eye(count, dtype=X.dtype, device=X.device)], 1)
        root = torch.linalg.qr(rows.T, mode="r").R.T  # S = root root', without squaring the condition number
        s = torch.linalg.svdvals(root)
        singular = s[-1] <= max(rows.shape) * torch.finfo(s.dtype).eps * s[0]
        return torch.where(singular, math.nan, root)

    def _compare(self, a: Tensor, b: Tensor) -> Tensor | float:
        if (a[0, 0] + b[0, 0]).isnan():
            return math.nan
        ratio = torch.linalg.solve_triangular(a, b, upper=False)
        return 2 * torch.linalg.vector_norm(torch.linalg.svdvals(ratio).log())
