"""Batches in pieces of a few inputs, so that what a network computes for one piece stays small."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import inputs_of, labels_of, rows_at


def pieces(batch: Any, size: int) -> Iterator[Any]:
    """The inputs of a batch in their order, in batches of at most `size`.

    A batch stays whole where it does not say how it divides: where its tensors have different numbers of rows, or lie
    inside of containers.

    Args:
        batch: with its labels, if it has any.
        size: most inputs of a piece.

    >>> [len(piece) for piece in pieces(torch.zeros(5, 3), 2)]
    [2, 2, 1]
    """
    rows = _rows(batch)
    if rows is None or rows <= size:
        yield batch
        return
    number = torch.arange(rows) // size
    for piece in range(int(number[-1]) + 1):
        yield rows_at(batch, number == piece)


def _rows(batch: Any) -> int | None:
    """How many inputs a batch has; None where it cannot be divided."""
    args, kwargs = inputs_of(batch)
    values = [*args, *kwargs.values(), labels_of(batch)]
    if any(isinstance(value, Mapping | list | tuple) for value in values):
        return None
    lengths = {len(value) if value.ndim else 0 for value in values if isinstance(value, Tensor)}
    return lengths.pop() if len(lengths) == 1 else None
