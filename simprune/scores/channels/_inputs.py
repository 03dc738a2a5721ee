"""The covariance of a layer's inputs, and its inverse.

The second-order cost of an input needs both. A layer has D inputs (columns), and the calibration set gives N rows, one
per sample and position. There are two representations with the same methods:

- `Matrices` holds the covariance, (D, D). It is used when N is not far below D.
- `Rows` holds the centred rows B, (N, D), divided by the root of N, when N < D / `FEW`. The covariance is B^T B. Its
  inverse, with d added to the diagonal, is (1 - A^T A) / d, where A = L^-1 B and L L^T = d + B B^T (Woodbury's
  identity). For example, the first layer of VGG's classifier has 25,088 inputs: their covariance would take 5 GB, while
  the calibration set rarely has as many rows.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from simprune.core.moments import Collected
from simprune.scores.channels._elimination import Dense, Factored
from simprune.trace.layers import stacked

FEW = 4  # as many times more inputs than rows make rows cheaper than a covariance


class Gathered:
    """Inputs of a layer, collected batch by batch: as rows or products, whichever take less memory."""

    def __init__(self) -> None:
        self._collected = Collected()
        self._known: Matrices | Rows | None = None

    def add(self, inputs: Tensor) -> None:
        """Add the inputs of one batch, (samples, inputs, positions)."""
        self._collected.add(stacked(inputs).T)

    def inputs(self) -> "Matrices | Rows":
        """What the score needs to know of the inputs, of which no more are added then."""
        if self._known is None:
            rows = self._collected.rows()
            if rows is not None and FEW * len(rows) < rows.shape[1]:
                self._known = Rows(rows.double().cpu())
            else:
                moments = self._collected.as_summed()
                moments.scatter.div_(moments.count)  # in place, because it may be as large as the layer many times over
                self._known = Matrices(moments.scatter.cpu(), moments.mean.cpu())
            self._collected = Collected()
        return self._known


class Matrices:
    """The covariance as a matrix (inputs, inputs), of many inputs in single precision, as it was summed up.

    Single precision suffices for many inputs, and takes half the time: what it rounds off a factor of the covariance is
    less than the least ridge adds.
    """

    def __init__(self, covariance: Tensor, mean: Tensor) -> None:
        self.covariance, self.mean = covariance, mean

    def _root(self, count: int, ridge: float) -> Tensor:
        """Lower factor of the first inputs' covariance; `ridge` times the mean variance is added to its diagonal.

        In double precision where single precision has no factor.
        """
        part, more = self.covariance[:count, :count], ridge * float(self.covariance.diagonal().mean()) + 1e-12
        ridged = part.clone()
        ridged.diagonal().add_(more)
        root, failed = torch.linalg.cholesky_ex(ridged)
        if not failed:
            return root
        ridged = part.double()
        ridged.diagonal().add_(more)
        return torch.linalg.cholesky(ridged, out=ridged)

    def blocks(self, columns: Tensor) -> Tensor:
        """Covariances among the k inputs of every unit, (units, k, k), for their numbers `columns`, (units, k)."""
        return self.covariance[columns[:, :, None], columns[:, None, :]].double()

    def covariances(self, columns: Tensor) -> Tensor:
        """(units, units) covariances of units, summed over their k inputs; for the inputs' numbers as in `blocks`."""
        return torch.stack([self.covariance[ones[:, None], ones].double() for ones in columns.T]).sum(0)

    def inverse(self, columns: Tensor, ridge: float) -> Dense:
        """The entries of the inverse covariance for some inputs, by their numbers."""
        inverse = torch.cholesky_inverse(self._root(len(self.covariance), ridge))
        whole = torch.equal(columns, torch.arange(len(inverse)))
        return Dense(inverse if whole else inverse.index_select(0, columns).index_select(1, columns))

    def equal(self, other: "Matrices | Rows") -> bool:
        """Whether the other inputs are the same, to the last bit."""
        return isinstance(other, Matrices) and all(
            torch.equal(*pair) for pair in ((self.mean, other.mean), (self.covariance, other.covariance))
        )

    def sequence(self, numbers: Tensor) -> "Matrices":
        """The same inputs in another order, by their numbers."""
        chosen = self.covariance.index_select(0, numbers).index_select(1, numbers)  # faster than by brackets
        return Matrices(chosen, self.mean[numbers])

    def refits(self, matrix: Tensor, counts: Sequence[int], ridge: float) -> Iterator[Tensor]:
        """Least-squares weights with which the first inputs reproduce what a matrix gives for all inputs.

        One factor L of the covariance with the ridge serves all counts, because the factor for fewer inputs is a corner
        L_c of it: L_c L_c^T w = (L L^T W^T)_c = L_c (L^T W^T)_c, of which one triangular solve per count is left.

        Args:
            matrix: (outputs, inputs).
            counts: numbers of inputs that are first, each for itself.
            ridge: on the change of the weights, relative to the mean variance of the inputs.

        Yields:
            (outputs, first inputs) for every count.
        """
        root = self._root(len(self.covariance), ridge)
        halves = root.T @ matrix.T.to(root)
        for count in counts:
            yield torch.linalg.solve_triangular(root[:count, :count].T, halves[:count], upper=True).T.double()

    def replacing(self, matrix: Tensor, count: int, rows: Tensor) -> Callable[[float], Tensor]:
        """What the first inputs give in place of the others, least squares with a ridge.

        Args:
            matrix: (outputs, inputs).
            count: number of inputs that are first.
            rows: (rows, inputs) on which it is computed, about the inputs' mean.

        Returns:
            A function of the ridge, relative to the mean variance of the inputs, that returns (rows, outputs).
        """
        wanted = self.covariance[:count, count:] @ matrix[:, count:].T.to(self.covariance)
        first = rows[:, :count].to(self.covariance)

        def at(ridge: float) -> Tensor:
            root = self._root(count, ridge)
            if len(rows) < len(matrix):
                return torch.cholesky_solve(first.T.to(root), root).T @ wanted.to(root)
            return first.to(root) @ torch.cholesky_solve(wanted.to(root), root)

        return at


class Rows:
    """The same by way of the (rows, inputs) themselves, for layers with far fewer rows than inputs."""

    def __init__(self, rows: Tensor) -> None:
        self.mean = rows.mean(0)
        self.rows = (rows - self.mean) / len(rows) ** 0.5

    def _damping(self, ridge: float) -> Tensor:
        return ridge * self.rows.square().sum(0).mean() + 1e-12

    def _root(self, rows: Tensor, ridge: float) -> Tensor:
        return torch.linalg.cholesky(rows @ rows.T + self._damping(ridge) * torch.eye(len(rows), dtype=rows.dtype))

    def blocks(self, columns: Tensor) -> Tensor:
        parts = self.rows[:, columns].movedim(0, 1)  # (units, rows, k)
        return parts.mT @ parts

    def covariances(self, columns: Tensor) -> Tensor:
        parts = self.rows[:, columns.T].flatten(0, 1)  # (rows x k, units)
        return parts.T @ parts

    def inverse(self, columns: Tensor, ridge: float) -> Factored:
        root = self._root(self.rows, ridge)
        factor = torch.linalg.solve_triangular(root, self.rows[:, columns], upper=False)
        return Factored(factor, self._damping(ridge))

    def equal(self, other: "Matrices | Rows") -> bool:
        return isinstance(other, Rows) and torch.equal(self.mean, other.mean) and torch.equal(self.rows, other.rows)

    def sequence(self, numbers: Tensor) -> "Rows":
        same = copy(self)
        same.mean, same.rows = self.mean[numbers], self.rows[:, numbers]
        return same

    def refits(self, matrix: Tensor, counts: Sequence[int], ridge: float) -> Iterator[Tensor]:
        for count in counts:
            change = self._change(matrix, count)(ridge)
            yield matrix[:, :count] + change.T @ self.rows[:, :count]

    def replacing(self, matrix: Tensor, count: int, rows: Tensor) -> Callable[[float], Tensor]:
        change, kernel = self._change(matrix, count), rows[:, :count] @ self.rows[:, :count].T
        return lambda ridge: kernel @ change(ridge)

    def _change(self, matrix: Tensor, count: int) -> Callable[[float], Tensor]:
        """Ridge -> (rows, outputs) coefficients of the rows, whose sum is the change of the first weights."""
        wanted, first = self.rows[:, count:] @ matrix[:, count:].T, self.rows[:, :count]
        return lambda ridge: torch.cholesky_solve(wanted, self._root(first, ridge))
