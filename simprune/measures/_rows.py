"""Rows compared with each other: distances, and rows without a direction.

Distances come from torch's `pdist`: for all pairs i < j of rows of X (N, D), (N(N-1)/2,) in that order. It forms
differences before squaring, so that duplicate rows are at distance zero and a common offset is harmless.
"""

import warnings

import torch
from torch import Tensor
from torch.nn.functional import pdist

from simprune.measures._base import DegenerateWarning, Measure


def distance_matrix(X: Tensor) -> Tensor:
    """Euclidean distances (N, N) of the rows of X (N, D), with a zero diagonal."""
    full = X.new_zeros(len(X), len(X))
    i, j = torch.triu_indices(len(X), len(X), 1, device=X.device)
    full[i, j] = pdist(X)
    return full + full.T


def above_diagonal(matrix: Tensor) -> Tensor:
    """Entries i < j of a matrix (N, N), as one vector."""
    i, j = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return matrix[i, j]


def warn_of_zero_rows(
    measure: Measure,
    X: Tensor,
    problem: str = "are zero and have no direction; they count as similar to no row",
) -> None:
    """Warn of the number of rows of X (N, D) that are zero; `problem` completes "3 of 20 rows ..."."""
    count = int((X == 0).all(1).sum())
    if count:
        warnings.warn(f"{measure.id}: {count} of {len(X)} rows {problem}", DegenerateWarning, stacklevel=5)
