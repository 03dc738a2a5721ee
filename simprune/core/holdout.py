"""Which calibration inputs are held out of a fit, so that it can be judged on inputs that it has not seen.

The number of an input in the calibration set decides, so that the same inputs in batches of other sizes give the same
plan. Inputs that are held out lie next to each other, so that windows of one document are rarely on both sides: in runs
that grow with the number of inputs before them, so that of every set between a fifth and a third is held out.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from simprune.core.batches import rows_at
from simprune.core.pieces import inputs_in

SHARE = 4  # one input in about this many is held out
LONGEST = 64  # inputs with one run of inputs that are held out; the first inputs come in stretches of 4, 4, 8, 16, 32


def held_out(first: int, inputs: int, rows: int | None = None, share: int = SHARE) -> Tensor:
    """Which rows of a batch are held out.

    Args:
        first: the number of inputs in all batches before it.
        inputs: the number of inputs in it.
        rows: in what is computed from them, input after input, such as tokens or windows; as many as inputs by default.
            Fewer rows than inputs belong to no input, and none of them is held out.
        share: one input in about this many, a power of two.

    Returns:
        (rows,) true where a row is held out.

    >>> held_out(0, 8).nonzero().flatten().tolist(), held_out(4, 2, rows=4).tolist()
    ([1, 5], [False, False, True, True])
    >>> [int(held_out(0, inputs).sum()) for inputs in (1, 2, 32, 48, 1000)]
    [0, 1, 8, 16, 256]
    """
    rows = inputs if rows is None else rows
    if rows < inputs:
        return torch.zeros(rows, dtype=torch.bool)
    held = torch.tensor([_is_held(number, share) for number in range(first, first + inputs)], dtype=torch.bool)
    return held if rows == inputs else held[torch.arange(rows) * inputs // rows]


def _is_held(number: int, share: int) -> bool:
    stretch = max(min(1 << max(number.bit_length() - 1, 0), LONGEST), share)
    run = range(stretch // 4, stretch // 4 + stretch // share)
    return number % stretch in run


def divided(batches: Iterable, share: int = SHARE, most: int | None = None) -> Iterator[tuple[Any | None, Any | None]]:
    """Of every batch the part to fit to, and the part that is held out; None for a part without inputs.

    A batch that does not say how it divides counts as one input.

    Args:
        batches: of one walk.
        share: one input in about this many is held out, a power of two.
        most: inputs that are held out, after which batches stay whole; None: any number.

    >>> [(len(rest), held) for rest, held in divided([torch.arange(3)])]
    [(2, tensor([1]))]
    """
    first = count = 0
    for batch in batches:
        inputs = inputs_in(batch)
        held = held_out(first, inputs or 1, share=share)
        first += inputs or 1
        if not held.any() or (most is not None and count >= most):
            yield batch, None
            continue
        count += int(held.sum())
        yield (None, batch) if held.all() else (rows_at(batch, ~held), rows_at(batch, held))


def split(batches: Iterable, share: int = SHARE) -> tuple[list[Any], list[Any]]:
    """Batches of the inputs to fit to, and of those that are held out (see `divided`).

    >>> fitting, judging = split([torch.arange(8)])
    >>> judging[0].tolist(), len(fitting[0])
    ([1, 5], 6)
    """
    parts = list(divided(batches, share))
    return [rest for rest, _ in parts if rest is not None], [held for _, held in parts if held is not None]


class Counting:
    """Counts the inputs of the batches that run, one batch after another.

    >>> counting = Counting()
    >>> counting.begin(3)
    >>> counting.begin(3)
    >>> counting.held_out().tolist()
    [False, False, True]
    """

    def __init__(self) -> None:
        self.first = self.inputs = 0  # the number of inputs in all batches before the one that runs, and in that one

    def begin(self, inputs: int) -> None:
        """A batch of so many inputs runs next."""
        self.first, self.inputs = self.first + self.inputs, inputs

    @property
    def any_held(self) -> bool:
        """Whether an input of a batch before the one that runs is held out."""
        return bool(held_out(0, min(self.first, SHARE)).any())

    def held_out(self, rows: int | None = None, share: int = SHARE) -> Tensor:
        """Which rows of the batch that runs are held out (see `held_out`)."""
        return held_out(self.first, self.inputs, rows, share)
