"""Nearest rows by cosine, with one rule for ties that all measures of neighbours share."""

import torch
from torch import Tensor

TILE = 2**21  # cosines held at once (16 MiB)
TIE = 2.0**-40  # cosines closer than about 1e-12 are equal: rounding must not decide who is a neighbour


def unit_scaled_(X: Tensor) -> Tensor:
    """X divided in place by its largest magnitude, so that squares neither overflow nor vanish.

    For gradients the magnitude is a constant: what is computed from the result must not depend on its scale.
    """
    low, high = X.detach().aminmax()  # several times faster than the infinity norm
    largest = torch.maximum(-low, high)
    return X.div_(torch.where(largest > 0, largest, 1.0))


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

    >>> largest(torch.tensor([[0.5, 1.0, 0.5 + 1e-14, -1.0]], dtype=torch.float64), k=2)
    tensor([[1, 0]])
    """
    width = values.shape[1]
    backwards = torch.arange(width - 1, -1, -1, device=values.device)
    keys = (values / TIE).round().to(torch.int64) * width + backwards  # a total order; exact for N < 2^22
    return keys.topk(k, dim=1).indices


def nearest(X: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of largest cosine to every row of X (N, D), the row itself left out: indices (N, k), cosines (N, k).

    The most similar row comes first, and in ties the row with the lower index. A zero row has cosine 0 to all. Memory
    O(N k), and at most `TILE` cosines at once; time O(N^2 D).
    """
    rows = directions(X)
    count = len(rows)
    step = max(1, TILE // count)
    parts = []
    for start in range(0, count, step):
        cosines = (rows[start : start + step] @ rows.T).clamp_(-1.0, 1.0)
        masked = cosines.clone()
        masked.diagonal(start).fill_(-2.0)  # below every cosine
        indices = largest(masked, k)
        parts.append((indices, cosines.gather(1, indices)))
    return torch.cat([indices for indices, _ in parts]), torch.cat([cosines for _, cosines in parts])
