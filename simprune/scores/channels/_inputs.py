"""A layer's inputs as the second-order cost needs them: their covariance, and its inverse while inputs go.

As matrices, inputs x inputs, where there are more rows than inputs. Else as the rows B themselves, one per input and
position and divided by the root of their number: the covariance is B^T B, and its inverse, damped by d, is
(1 - A^T A) / d with A = L^-1 B and L L^T = d + B B^T (the identity of Woodbury). The classifier of a VGG has 25,088
inputs, whose covariance would be 5 GB, and rarely as many rows.
"""

import torch
from torch import Tensor

from simprune.core.moments import Moments
from simprune.trace.layers import joint_moments, stacked


class Gathered:
    """Inputs of a layer, batch by batch: rows as long as they are fewer than inputs, then moments."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []  # (inputs, rows) each
        self.moments: Moments | None = None

    def add(self, inputs: Tensor) -> None:
        """Add (N, inputs, positions)."""
        self.rows.append(stacked(inputs))
        if self.moments is not None or sum(rows.shape[1] for rows in self.rows) >= inputs.shape[1]:
            for rows in self.rows:
                found = joint_moments(rows[None])
                self.moments = found if self.moments is None else self.moments.merge(found)
            self.rows = []

    def inverted(self, ridge: float) -> "Matrices | Rows":
        """Ready for inputs to go, the inverse damped by `ridge` x the mean variance."""
        if self.moments is not None:
            return Matrices(self.moments.covariance.cpu(), self.moments.mean.cpu(), ridge)
        return Rows(torch.cat([rows.double().cpu() for rows in self.rows], 1).T, ridge)


PENDING = 64  # rows of changes: enough for a product of matrices to be worth its while


class Matrices:
    """Covariance and inverse as (inputs, inputs) matrices.

    The inverse is `inverse` - `rows`^T `halves`: its changes are collected and taken out many at a time.
    """

    def __init__(self, covariance: Tensor, mean: Tensor, ridge: float) -> None:
        self.covariance, self.mean = covariance, mean
        damping = ridge * covariance.diagonal().mean() + 1e-12
        self.ridged = covariance + damping * torch.eye(len(covariance), dtype=covariance.dtype)
        self.inverse = torch.linalg.inv(self.ridged)
        self.rows = self.halves = self.inverse[:0]

    def blocks(self, columns: Tensor) -> Tensor:
        """Covariance of each of the (units, k) inputs among themselves: (units, k, k)."""
        return self.covariance[columns[:, :, None], columns[:, None, :]]

    def inverse_blocks(self, columns: Tensor) -> Tensor:
        """The same of the inverse, of what is left."""
        changes = _products(self.rows, self.halves, columns)
        return self.inverse[columns[:, :, None], columns[:, None, :]] - changes

    def remove(self, columns: Tensor) -> Tensor:
        """Take (k,) inputs out; returns how the others make up for them, (k, inputs), with 1 for each itself."""
        rows = self.inverse[columns] - self.halves[:, columns].T @ self.rows
        half = torch.linalg.solve(rows[:, columns], rows)
        self.rows, self.halves = torch.cat([self.rows, rows]), torch.cat([self.halves, half])
        if len(self.rows) >= PENDING:
            self.inverse.addmm_(self.rows.T, self.halves, alpha=-1)
            self.rows = self.halves = self.inverse[:0]
        return half

    def refit(self, matrix: Tensor, kept: Tensor) -> Tensor:
        """(outputs, kept inputs): with which the inputs that `kept` marks give what `matrix` makes of all."""
        return torch.linalg.solve(self.ridged[kept][:, kept], self.covariance[kept] @ matrix.T).T


class Rows:
    """The same of fewer (rows, inputs) than there are inputs."""

    def __init__(self, rows: Tensor, ridge: float) -> None:
        self.mean = rows.mean(0)
        self.rows = (rows - self.mean) / len(rows) ** 0.5
        self.damping = ridge * self.rows.square().sum(0).mean() + 1e-12
        self.factor = torch.linalg.solve_triangular(self._root(self.rows), self.rows, upper=False)

    def _root(self, rows: Tensor) -> Tensor:
        return torch.linalg.cholesky(rows @ rows.T + self.damping * torch.eye(len(rows), dtype=rows.dtype))

    def blocks(self, columns: Tensor) -> Tensor:
        return _products(self.rows, self.rows, columns)

    def inverse_blocks(self, columns: Tensor) -> Tensor:
        return (
            torch.eye(columns.shape[1], dtype=self.rows.dtype) - _products(self.factor, self.factor, columns)
        ) / self.damping

    def remove(self, columns: Tensor) -> Tensor:
        own = self.factor[:, columns]
        left, values, right = torch.linalg.svd(own, full_matrices=False)
        rest = (1 - values.square()).clamp(min=1e-15)  # of the inverse, in directions of these inputs
        onto = left.T @ self.factor
        half = -(right.T * (values / rest)) @ onto
        half[:, columns] = torch.eye(len(columns), dtype=half.dtype)
        self.factor.addmm_(left * (rest.rsqrt() - 1), onto)
        self.factor[:, columns] = 0
        return half

    def refit(self, matrix: Tensor, kept: Tensor) -> Tensor:
        some = self.rows[:, kept]
        return torch.cholesky_solve(self.rows @ matrix.T, self._root(some)).T @ some


def _products(a: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """a^T b of each of the (units, k) columns among themselves: (units, k, k)."""
    left, right = (rows[:, columns].movedim(0, 1) for rows in (a, b))  # (units, rows, k)
    return left.transpose(1, 2) @ right
