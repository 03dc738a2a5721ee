"""Rows compared with each other: distances, directions, nearest neighbours."""

import warnings

import torch
from torch import Tensor

from simprune.measures._base import DegenerateWarning, Measure
from simprune.measures._products import TILE, unit_scaled_

TIE = 2.0**-40  # cosines closer than about 1e-12 are equal: rounding must not decide who is a neighbour


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


def directions(X: Tensor) -> Tensor:
    """Rows of X (N, D) divided by their lengths; a zero row stays zero."""
    rows = unit_scaled_(X.clone())
    largest = rows.abs().amax(1, keepdim=True)  # short rows beside long ones must not vanish when squared
    rows /= torch.where(largest > 0, largest, 1.0)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows.div_(torch.where(length > 0, length, 1.0))


def largest(values: Tensor, k: int) -> Tensor:
    """Columns (n, k) of the k largest entries of each row of values (n, N) in [-1, 1], largest first.

    Entries equal up to `TIE` are ordered by index on every device.
    """
    width = values.shape[1]
    backwards = torch.arange(width - 1, -1, -1, device=values.device)
    keys = (values / TIE).round().to(torch.int64) * width + backwards  # a total order; exact for N < 2^22
    return keys.topk(k, dim=1).indices


def nearest(X: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of largest cosine to each row of X (N, D), itself left out: indices (N, k), cosines (N, k).

    Most similar first, lower index first in ties; a zero row has cosine 0 to all. Holds a tile of cosines only.
    """
    rows = directions(X)
    count = len(rows)
    step = max(1, TILE // count)
    found = []
    for start in range(0, count, step):
        cosines = (rows[start : start + step] @ rows.T).clamp_(-1.0, 1.0)
        masked = cosines.clone()
        masked.diagonal(start).fill_(-2.0)  # below every cosine
        indices = largest(masked, k)
        found.append((indices, cosines.gather(1, indices)))
    return torch.cat([each[0] for each in found]), torch.cat([each[1] for each in found])
