"""The covariance of a layer's inputs, and its inverse.

The second-order cost of an input needs both. A layer has D inputs (columns), and the calibration set gives N rows, one
per sample and position. There are two representations with the same methods:

- `Matrices` holds the covariance, (D, D). It is used when N is not far below D.
- `Rows` holds the centred rows B, (N, D), divided by the root of N, when N < D / `FEW`. The covariance is B^T B. Its
  inverse, with d added to the diagonal, is (1 - A^T A) / d, where A = L^-1 B and L L^T = d + B B^T (Woodbury's
  identity). For example, the first layer of VGG's classifier has 25,088 inputs: their covariance would take 5 GB, while
  the calibration set rarely has as many rows.
"""

import torch
from torch import Tensor

from simprune.core.moments import Moments
from simprune.scores.channels._elimination import Dense, Factored
from simprune.trace.layers import joint_moments, stacked

FEW = 4  # as many times more inputs than rows make rows cheaper than a covariance


class Gathered:
    """Inputs of a layer, collected batch by batch: as rows while there are far fewer than inputs, then as moments."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []  # of every batch: (inputs, rows)
        self.moments: Moments | None = None

    def add(self, inputs: Tensor) -> None:
        """Add the inputs of one batch, (samples, inputs, positions)."""
        self.rows.append(stacked(inputs))
        if self.moments is not None or FEW * sum(rows.shape[1] for rows in self.rows) >= inputs.shape[1]:
            for rows in self.rows:
                moments = joint_moments(rows[None])
                self.moments = moments if self.moments is None else self.moments.merge(moments)
            self.rows = []

    def inputs(self) -> "Matrices | Rows":
        """What the score needs to know of the inputs."""
        if self.moments is not None:
            return Matrices(self.moments.covariance.cpu(), self.moments.mean.cpu())
        return Rows(torch.cat([rows.double().cpu() for rows in self.rows], 1).T)


class Matrices:
    """The covariance as a matrix (inputs, inputs)."""

    def __init__(self, covariance: Tensor, mean: Tensor) -> None:
        self.covariance, self.mean = covariance, mean

    def _root(self, matrix: Tensor, ridge: float) -> Tensor:
        """Lower factor of a part of the covariance; `ridge` times the mean variance is added to the diagonal first."""
        matrix.diagonal().add_(ridge * self.covariance.diagonal().mean() + 1e-12)
        return torch.linalg.cholesky(matrix, out=matrix)

    def blocks(self, columns: Tensor) -> Tensor:
        """Covariances among the k inputs of every unit, (units, k, k), for their numbers `columns`, (units, k)."""
        return self.covariance[columns[:, :, None], columns[:, None, :]]

    def inverse(self, columns: Tensor, ridge: float) -> Dense:
        """The entries of the inverse covariance for some inputs, by their numbers."""
        inverse = torch.cholesky_inverse(self._root(self.covariance.clone(), ridge))
        whole = torch.equal(columns, torch.arange(len(inverse)))
        return Dense(inverse if whole else inverse[columns][:, columns])

    def refit(self, matrix: Tensor, remaining: Tensor, ridge: float) -> Tensor:
        """Least-squares weights with which the remaining inputs reproduce the outputs that a matrix gives.

        Args:
            matrix: (outputs, inputs), zero for the remaining inputs.
            remaining: (inputs,) true for the inputs that are not removed.
            ridge: of the weights, relative to the mean variance of the inputs.

        Returns:
            (outputs, remaining inputs).
        """
        rows = self.covariance[remaining]
        wanted = rows[:, ~remaining] @ matrix[:, ~remaining].T
        return torch.cholesky_solve(wanted, self._root(rows[:, remaining], ridge)).T


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

    def inverse(self, columns: Tensor, ridge: float) -> Factored:
        root = self._root(self.rows, ridge)
        factor = torch.linalg.solve_triangular(root, self.rows[:, columns], upper=False)
        return Factored(factor, self._damping(ridge))

    def refit(self, matrix: Tensor, remaining: Tensor, ridge: float) -> Tensor:
        rows, removed = self.rows[:, remaining], self.rows[:, ~remaining]
        return torch.cholesky_solve(removed @ matrix[:, ~remaining].T, self._root(rows, ridge)).T @ rows
