"""Rows compared with each other: distances, and rows without a direction."""

import warnings

import torch
from torch import Tensor

from simprune.measures._base import DegenerateWarning, Measure


def distances(X: Tensor) -> Tensor:
    """Euclidean distances of all pairs i < j of rows of X (N, D), (N(N-1)/2,) in that order.

    Differences are formed before squaring: duplicate rows are at distance zero, and a common offset is harmless.
    """
    return torch.nn.functional.pdist(X)


def symmetric(pairs: Tensor, count: int) -> Tensor:
    """The symmetric matrix (N, N) with zero diagonal of values for all pairs i < j."""
    full = pairs.new_zeros(count, count)
    i, j = torch.triu_indices(count, count, 1, device=pairs.device)
    full[i, j] = pairs
    return full + full.T


def above_diagonal(matrix: Tensor) -> Tensor:
    """Entries i < j of a matrix (N, N), as one vector."""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return matrix[i, j]


def warn_of_zero_rows(measure: Measure, X: Tensor, what: str = "are zero") -> None:
    """Say how many rows of X (N, D) have no direction: the measure takes them as orthogonal to every row."""
    count = int((X == 0).all(1).sum())
    if count:
        warnings.warn(
            f"{measure.id}: {count} of {len(X)} rows {what} and have no direction; they count as similar to no row",
            DegenerateWarning,
            stacklevel=5,
        )
