"""Batches in pieces of a few inputs, so that what a network computes for one piece stays small."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import inputs_of, rows_at
from simprune.core.labels import labels_by_output, labels_of


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
    rows = inputs_in(batch)
    if rows is None or rows <= size:
        yield batch
        return
    number = torch.arange(rows) // size
    for piece in range(int(number[-1]) + 1):
        yield rows_at(batch, number == piece)


def dealt(batch: Any, rank: int, size: int) -> tuple[Any, bool]:
    """The inputs of a batch that fall to one of several processes, and whether there are any.

    Every process gets one input at least, so that all of them run the model; one that does not count where there are
    fewer inputs than processes. A batch that does not divide falls to the first process.

    Args:
        batch: with its labels, if it has any; the same for all processes.
        rank: the number of the process, from 0.
        size: the number of processes.

    >>> dealt(torch.arange(5), 1, 2), dealt(torch.arange(1), 1, 2)
    ((tensor([1, 3]), True), (tensor([0]), False))
    """
    rows = inputs_in(batch)
    if size == 1 or rows is None:
        return batch, rank == 0
    if rows <= rank:
        return rows_at(batch, torch.arange(rows) == 0), False
    return rows_at(batch, torch.arange(rows) % size == rank), True


def inputs_in(batch: Any) -> int | None:
    """How many inputs a batch has; None where it cannot be divided.

    Args:
        batch: with its labels, if it has any. Numbers beside its tensors, such as a step of diffusion, are for all.

    >>> inputs_in({"x": torch.zeros(3, 2), "scale": torch.tensor(2.0)}), inputs_in((torch.zeros(3, 2), torch.zeros(4)))
    (3, None)
    """
    args, kwargs = inputs_of(batch)
    labels = [*labels_by_output(batch).values()] or [labels_of(batch)]
    values = [*args, *kwargs.values()]
    if any(isinstance(value, Mapping | list | tuple) for value in [*values, *labels]):
        return None
    lengths = {len(value) for value in values if isinstance(value, Tensor) and value.ndim}
    lengths |= {len(value) if value.ndim else 0 for value in labels if isinstance(value, Tensor)}
    return lengths.pop() if len(lengths) == 1 else None
