"""The covariance of a layer's inputs, and its inverse, which is updated while inputs are removed one after another.

The second-order cost of an input needs both. A layer has D inputs (columns), and the calibration set gives N rows, one
per sample and position. There are two representations with the same methods:

- `Matrices` holds the covariance and its inverse, (D, D). It is used when N >= D.
- `Rows` holds the centred rows B, (N, D), divided by the root of N, when N < D. The covariance is B^T B. Its inverse,
  with d added to the diagonal, is (1 - A^T A) / d, where A = L^-1 B and L L^T = d + B B^T (Woodbury's identity). For
  example, the first layer of VGG's classifier has 25,088 inputs: their covariance would take 5 GB, while the
  calibration set rarely has as many rows.
"""

import torch
from torch import Tensor

from simprune.core.moments import Moments
from simprune.trace.layers import joint_moments, stacked


class Gathered:
    """Inputs of a layer, collected batch by batch: as rows while there are fewer rows than inputs, then as moments."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []  # of every batch: (inputs, rows)
        self.moments: Moments | None = None

    def add(self, inputs: Tensor) -> None:
        """Add the inputs of one batch, (samples, inputs, positions)."""
        self.rows.append(stacked(inputs))
        if self.moments is not None or sum(rows.shape[1] for rows in self.rows) >= inputs.shape[1]:
            for rows in self.rows:
                moments = joint_moments(rows[None])
                self.moments = moments if self.moments is None else self.moments.merge(moments)
            self.rows = []

    def inverted(self, ridge: float) -> "Matrices | Rows":
        """The covariance and its inverse; `ridge` times the mean variance is added to the diagonal first."""
        if self.moments is not None:
            return Matrices(self.moments.covariance.cpu(), self.moments.mean.cpu(), ridge)
        return Rows(torch.cat([rows.double().cpu() for rows in self.rows], 1).T, ridge)


PENDING = 64  # removed inputs whose updates of the inverse are applied in one matrix product, which is faster


class Matrices:
    """Covariance and inverse as (inputs, inputs) matrices, for layers with at least as many rows as inputs.

    The current inverse is `inverse` - `rows`^T `halves`: the updates by removed inputs are collected in `rows` and
    `halves`, and subtracted when there are `PENDING` of them.
    """

    def __init__(self, covariance: Tensor, mean: Tensor, ridge: float) -> None:
        self.covariance, self.mean = covariance, mean
        damping = ridge * covariance.diagonal().mean() + 1e-12
        self.inverse = torch.linalg.inv(covariance + damping * torch.eye(len(covariance), dtype=covariance.dtype))
        self.rows = self.halves = self.inverse[:0]

    def blocks(self, columns: Tensor) -> Tensor:
        """Covariances among the k inputs of every unit, (units, k, k), for their numbers `columns`, (units, k)."""
        return self.covariance[columns[:, :, None], columns[:, None, :]]

    def inverse_blocks(self, columns: Tensor) -> Tensor:
        """The blocks (units, k, k) of the inverse covariance of the remaining inputs."""
        changes = _products(self.rows, self.halves, columns)
        return self.inverse[columns[:, :, None], columns[:, None, :]] - changes

    def remove(self, columns: Tensor) -> Tensor:
        """Remove k inputs and update the inverse.

        Returns:
            (k, inputs): row i, applied with a minus sign to the other inputs, predicts removed input i; its own entry
            is 1. A refit subtracts the removed weights times these rows from the weights.
        """
        rows = self.inverse[columns] - self.halves[:, columns].T @ self.rows
        half = torch.linalg.solve(rows[:, columns], rows)
        self.rows, self.halves = torch.cat([self.rows, rows]), torch.cat([self.halves, half])
        if len(self.rows) >= PENDING:
            self.inverse.addmm_(self.rows.T, self.halves, alpha=-1)
            self.rows = self.halves = self.inverse[:0]
        return half

    def refit(self, matrix: Tensor, remaining: Tensor, ridge: float) -> Tensor:
        """Least-squares weights with which the remaining inputs reproduce the outputs that a matrix gives.

        Args:
            matrix: (outputs, inputs).
            remaining: (inputs,) true for the inputs that are not removed.
            ridge: of the weights, relative to the mean variance of the inputs.

        Returns:
            (outputs, remaining inputs).
        """
        ridged = self.covariance[remaining][:, remaining]
        ridged.diagonal().add_(ridge * self.covariance.diagonal().mean() + 1e-12)
        return torch.linalg.solve(ridged, self.covariance[remaining] @ matrix.T).T


class Rows:
    """Covariance and inverse by way of the (rows, inputs) themselves, for layers with fewer rows than inputs.

    The methods are those of `Matrices`. `factor` is the A of the top of this file.
    """

    def __init__(self, rows: Tensor, ridge: float) -> None:
        self.mean = rows.mean(0)
        self.rows = (rows - self.mean) / len(rows) ** 0.5
        self.damping = self._damping(ridge)
        self.factor = torch.linalg.solve_triangular(self._root(self.rows, ridge), self.rows, upper=False)

    def _damping(self, ridge: float) -> Tensor:
        return ridge * self.rows.square().sum(0).mean() + 1e-12

    def _root(self, rows: Tensor, ridge: float) -> Tensor:
        return torch.linalg.cholesky(rows @ rows.T + self._damping(ridge) * torch.eye(len(rows), dtype=rows.dtype))

    def blocks(self, columns: Tensor) -> Tensor:
        return _products(self.rows, self.rows, columns)

    def inverse_blocks(self, columns: Tensor) -> Tensor:
        changes = _products(self.factor, self.factor, columns)
        return (torch.eye(columns.shape[1], dtype=self.rows.dtype) - changes) / self.damping

    def remove(self, columns: Tensor) -> Tensor:
        removed = self.factor[:, columns]
        left, values, right = torch.linalg.svd(removed, full_matrices=False)
        # eigenvalues of the removed inputs' block of the inverse, times the damping; rounding must not make them zero
        eigenvalues = (1 - values.square()).clamp(min=1e-15)
        projected = left.T @ self.factor
        half = -(right.T * (values / eigenvalues)) @ projected
        half[:, columns] = torch.eye(len(columns), dtype=half.dtype)
        self.factor.addmm_(left * (eigenvalues.rsqrt() - 1), projected)
        self.factor[:, columns] = 0
        return half

    def refit(self, matrix: Tensor, remaining: Tensor, ridge: float) -> Tensor:
        rows = self.rows[:, remaining]
        return torch.cholesky_solve(self.rows @ matrix.T, self._root(rows, ridge)).T @ rows


def _products(a: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """(units, k, k): for every unit, the block of a^T b in its k `columns`, (units, k)."""
    left, right = (rows[:, columns].movedim(0, 1) for rows in (a, b))  # (units, rows, k)
    return left.transpose(1, 2) @ right
