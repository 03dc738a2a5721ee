"""How alike two representations are unit by unit: after the best pairing of units, not the best rotation.

The right family where a unit's identity matters, as in removing units. Assignments are solved by scipy on the
host; everything before and after stays on the device.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from simprune.measures._base import Distance, Measure
from simprune.measures._factors import basis
from simprune.measures._products import centred, unit_norm
from simprune.measures.alignment import RowCosine

NEVER = "never: every pair has a value"


def assignment(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The min(D, D') pairs of rows and columns of `scores` (D, D') that use each at most once, of largest sum."""
    rows, columns = scipy.optimize.linear_sum_assignment(scores.cpu().numpy(), maximize=True)
    return torch.from_numpy(rows).to(scores.device), torch.from_numpy(columns).to(scores.device)


class Plan(NamedTuple):
    """Which units share how much mass (k,): row unit, column unit, weight; weights sum to 1."""

    first: Tensor
    second: Tensor
    weight: Tensor


def transport(scores: Tensor) -> Plan:
    """The plan of largest total score with row sums 1/D and column sums 1/D'.

    In units of 1 / lcm(D, D') an optimal plan consists of integers. If every unit of the wider side needs few of
    them it is an assignment of copied units, otherwise a linear program whose vertex is rounded to integers.
    """
    wide, narrow = max(scores.shape), min(scores.shape)
    whole = math.lcm(wide, narrow)
    copies = [whole // size for size in scores.shape]
    if whole <= 4 * wide:
        first, second = assignment(scores.repeat_interleave(copies[0], 0).repeat_interleave(copies[1], 1))
        return Plan(first // copies[0], second // copies[1], scores.new_full((whole,), 1 / whole))
    values = scores.cpu().numpy()
    height, width = values.shape
    largest = np.abs(values).max()
    sums = scipy.sparse.vstack(
        [
            scipy.sparse.kron(scipy.sparse.eye(height), np.ones((1, width))),
            scipy.sparse.kron(np.ones((1, height)), scipy.sparse.eye(width)),
        ]
    )
    solution = scipy.optimize.linprog(
        -values.ravel() / (largest if largest > 0 else 1.0),
        A_eq=sums.tocsr(),
        b_eq=np.repeat(np.array(copies, dtype=float), [height, width]),
        method="highs-ds",  # dual simplex: ends in a vertex
        options={"dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10},
    )
    if solution.status != 0:
        raise RuntimeError(f"the optimal transport of {height} to {width} units was not solved: {solution.message}")
    amounts = np.rint(solution.x).reshape(height, width)
    first, second = amounts.nonzero()
    weight = torch.from_numpy(amounts[first, second] / whole).to(scores)
    return Plan(torch.from_numpy(first).to(scores.device), torch.from_numpy(second).to(scores.device), weight)


def matched(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """X and Y with units reordered so that column j of one is the partner of column j of the other.

    The narrower one is filled up with zero units; the partners maximise <X, Y>.
    """
    first, second = assignment(X.T @ Y)
    return _partners_first(X, first, Y.shape[1]), _partners_first(Y, second, X.shape[1])


def _partners_first(X: Tensor, order: Tensor, width: int) -> Tensor:
    """X's columns in this order, then those not in it, then zero columns up to `width`."""
    alone = torch.ones(X.shape[1], dtype=torch.bool, device=X.device)
    alone[order] = False
    return torch.cat([X[:, order], X[:, alone], X.new_zeros(len(X), max(0, width - X.shape[1]))], 1)


def unit_columns(X: Tensor) -> Tensor:
    """X with every column at length 1; zero columns stay zero."""
    largest = X.abs().amax(0)
    X = X / torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(X, dim=0)
    return X / torch.where(lengths > 0, lengths, 1.0)


@dataclass(frozen=True)
class PermutationProcrustes(Distance):
    """Distance left after the best reordering of units, in [0, inf); a metric between equal widths, 0 = equal.

    min over permutations P of |X P - Y|, X (N, D), Y (N, D'), the narrower one filled up with zero units;
    `center=True` subtracts every unit's mean first.

    Source: Williams, Kunz, Kornblith, Linderman 2021, arXiv:2110.14739.

    >>> X = torch.eye(4)[:, :2]
    >>> round(PermutationProcrustes()(X, X[:, [1, 0]]), 4), round(PermutationProcrustes()(X, X[:, :1]), 4)
    (0.0, 1.0)
    """

    center: bool = False

    id = "permutation_procrustes"
    is_metric = True
    invariant_to = frozenset({"PT"})
    cost = "prepare: rows (N, D); pair: a D x D' product and an assignment on the host, O(N D D' + D^3)"
    undefined = NEVER

    def _configure(self) -> None:
        if self.center:
            self._declare(invariant_to=self.invariant_to | {"TR"})

    def _prepare(self, X: Tensor) -> Tensor:
        return centred(X) if self.center else X.clone()

    def _compare(self, a: Tensor, b: Tensor) -> Tensor:
        X, Y = matched(a, b)
        return torch.linalg.vector_norm(X - Y)


@dataclass(frozen=True)
class PermutationAngular(Distance):
    """Angle left after the best reordering of units, in [0, pi]; a metric between equal widths, 0 = equal.

    arccos of the largest <X P, Y> over permutations P, X (N, D) and Y (N, D') centred (unless `center=False`) and
    of norm 1, the narrower one filled up with zero units.

    Source: Williams, Kunz, Kornblith, Linderman 2021, arXiv:2110.14739.

    >>> X = torch.eye(4)[:, :2]
    >>> round(PermutationAngular()(X, X[:, :1]), 4), round(PermutationAngular()(X[:, :1], -X[:, :1]), 4)
    (0.7854, 3.1416)
    """

    center: bool = True

    id = "permutation_angular"
    range = (0.0, math.pi)
    is_metric = True
    invariant_to = frozenset({"PT", "IS", "TR"})
    cost = "prepare: rows of norm 1 (N, D); pair: a D x D' product and an assignment, O(N D D' + D^3)"
    undefined = "a representation is the same for all inputs (with center=False: zero)"

    def _configure(self) -> None:
        if not self.center:
            self._declare(invariant_to=self.invariant_to - {"TR"})

    def _prepare(self, X: Tensor) -> Tensor:
        return unit_norm(centred(X) if self.center else X.clone())

    def _compare(self, a: Tensor, b: Tensor) -> Tensor:
        X, Y = matched(a, b)
        # the angle from distance and sum of unit vectors: keeps the digits of angles near 0 and pi
        angle = 2 * torch.atan2(torch.linalg.vector_norm(X - Y), torch.linalg.vector_norm(X + Y))
        return torch.where(a.any() & b.any(), angle, math.nan)


@dataclass(frozen=True)
class SoftMatchingDistance(Distance):
    """Distance of units after the best soft matching, in [0, inf); a metric for any widths, 0 = equal.

    sqrt(min over P of sum_ij P_ij |x_i - y_j|^2), x_i, y_j the centred units of X (N, D), Y (N, D'), P >= 0 with row
    sums 1/D and column sums 1/D'. For D = D' that is `permutation_procrustes` (centred) / sqrt(D).

    Source: Khosla, Williams 2024, arXiv:2311.09466.

    >>> X = torch.eye(4)[:, :3]
    >>> round(SoftMatchingDistance()(X, X[:, [2, 0, 1]]), 4), round(SoftMatchingDistance()(X, X[:, :2]), 4)
    (0.0, 0.8165)
    """

    id = "soft_matching_distance"
    is_metric = True
    invariant_to = frozenset({"PT", "TR"})
    cost = (
        "prepare: centred rows (N, D); pair: a D x D' product and an assignment, O(N D D' + D^3), or, where the "
        "widths' least common multiple is above four times the larger, a linear program in D D' unknowns"
    )
    undefined = NEVER

    def _prepare(self, X: Tensor) -> Tensor:
        return centred(X)

    def _compare(self, a: Tensor, b: Tensor) -> Tensor:
        plan = transport(a.T @ b)  # the squared lengths add the same for every plan
        return ((a[:, plan.first] - b[:, plan.second]).square().sum(0) @ plan.weight).sqrt()


@dataclass(frozen=True)
class Correlation(Measure):
    """Measures of the correlations C (D, D') between units; a constant unit correlates 0 with everything."""

    range = (-1.0, 1.0)
    invariant_to = frozenset({"PT", "IS", "TR"})
    cost = "prepare: standardised units (N, D); pair: a D x D' product and an assignment, O(N D D' + D^3)"
    undefined = NEVER

    def _prepare(self, X: Tensor) -> Tensor:
        return unit_columns(centred(X))

    def _compare(self, a: Tensor, b: Tensor) -> Tensor:
        return self._value((a.T @ b).clamp(-1.0, 1.0))

    def _value(self, C: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class SoftMatchingCorrelation(Correlation):
    """Mean correlation of units after the best soft matching, in [-1, 1], 1 = equal up to order, scale and shift.

    max over P of sum_ij P_ij corr(x_i, y_j) over the units of X (N, D), Y (N, D'), P as in `soft_matching_distance`.
    A constant unit counts as a correlation of 0.

    Source: Khosla, Williams 2024, arXiv:2311.09466.

    >>> X = torch.eye(4)[:, :3]
    >>> round(SoftMatchingCorrelation()(X, 2 * X[:, [2, 0, 1]] + 1), 4)
    1.0
    """

    id = "soft_matching_correlation"
    cost = SoftMatchingDistance.cost.replace("centred rows", "standardised units")

    def _value(self, C: Tensor) -> Tensor:
        plan = transport(C)
        return (C[plan.first, plan.second] @ plan.weight).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class HardCorrelationMatch(Correlation):
    """Mean correlation of units matched one to one, in [-1, 1], 1 = equal up to order, scale and shift.

    Over the min(D, D') pairs of units of X (N, D), Y (N, D') with the largest sum of correlations; units of the
    wider one left over do not count. A constant unit counts as a correlation of 0.

    Source: Li, Yosinski, Clune, Lipson, Hopcroft 2016, arXiv:1511.07543.

    >>> X = torch.eye(4)[:, :3]
    >>> round(HardCorrelationMatch()(X, -X[:, :2]), 4)
    0.3333
    """

    id = "hard_correlation_match"

    def _value(self, C: Tensor) -> Tensor:
        return C[assignment(C)].mean()


@dataclass(frozen=True)
class SoftCorrelationMatch(Correlation):
    """Mean correlation of units with their best partner, in [-1, 1], 1 = every unit is in the other one too.

    Average of the mean row maximum and the mean column maximum of the correlations of the units of X (N, D),
    Y (N, D'); several units may share a partner. A constant unit counts as a correlation of 0.

    Source: Li, Yosinski, Clune, Lipson, Hopcroft 2016, arXiv:1511.07543.

    >>> X = torch.eye(4)[:, :3]
    >>> round(SoftCorrelationMatch()(X, X[:, :2]), 4)
    0.7778
    """

    id = "soft_correlation_match"
    cost = "prepare: standardised units (N, D); pair: a D x D' product, O(N D D')"

    def _value(self, C: Tensor) -> Tensor:
        return (C.amax(1).mean() + C.amax(0).mean()) / 2


@dataclass(frozen=True)
class PermutationAlignedCosine(RowCosine):
    """Mean cosine between rows after the best reordering of units, in [-1, 1], 1 = equal up to it and row lengths.

    mean_i cos(X_i P, Y_i), P = argmax <X P, Y> over permutations; X (N, D), Y (N, D') not centred, the narrower one
    filled up with zero units. Zero rows are left out, with a DegenerateWarning.

    Source: Hamilton, Leskovec, Jurafsky 2016, arXiv:1606.02821, with a permutation for the rotation.

    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(PermutationAlignedCosine()(X, 2 * X[:, [1, 0]]), 4)
    1.0
    """

    id = "permutation_aligned_cosine"
    invariant_to = frozenset({"PT", "IS"})
    cost = "prepare: rows (N, D); pair: a D x D' product and an assignment, O(N D D' + D^3)"

    def _aligned(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        return matched(X, Y)


@dataclass(frozen=True)
class MaximumMatch(Measure):
    """Share of units that lie in the span of matched units of the other side, up to `epsilon`, in [0, 1].

    (|J| + |J'|) / (D + D') for the largest sets of units of X (N, D) and Y (N, D') such that each one's distance to
    the span of the other set is at most epsilon times its length. Not centred; also unchanged when single units are
    scaled. A zero unit is in every span, so it always matches: dead units (zero for all inputs, as after ReLU) raise
    the share, also where the other side has none, and two dead layers score 1. Leave them out to compare what the
    others do. Raises ValueError for epsilon outside (0, 1].

    Source: Wang, Hu, Gu, Wu, Hu, He, Hopcroft 2018, arXiv:1810.11750.

    >>> X = torch.eye(5)[:, :3]
    >>> round(MaximumMatch(epsilon=0.1)(X, X[:, :2]), 4)
    0.8
    """

    epsilon: float

    id = "maximum_match"
    invariant_to = frozenset({"PT", "IS"})
    cost = "prepare: units of length 1 (N, D); pair: one SVD per round, O(N D^2), until no unit is dropped"
    undefined = NEVER

    def _configure(self) -> None:
        self._require("epsilon", 0 < self.epsilon <= 1, "above 0 and at most 1")

    def _prepare(self, X: Tensor) -> Tensor:
        return unit_columns(X)

    def _compare(self, a: Tensor, b: Tensor) -> float:
        """Drop units outside of the span of the other side's remaining units, in turn: the largest sets are unique."""
        X, Y = a, b
        width = -1
        while width != X.shape[1] + Y.shape[1]:
            width = X.shape[1] + Y.shape[1]
            X = self._within(X, Y)
            Y = self._within(Y, X)
        return width / (a.shape[1] + b.shape[1])

    def _within(self, units: Tensor, others: Tensor) -> Tensor:
        """The columns of `units` no further than epsilon from the span of `others`."""
        rest = units
        if others.shape[1]:
            U = basis(others).U
            rest = units - U @ (U.T @ units)
        rounding = max(units.shape) * torch.finfo(units.dtype).eps
        return units[:, torch.linalg.vector_norm(rest, dim=0) <= self.epsilon + rounding]
