"""Batches of which the first can be looked at without a further walk over all of them."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from simprune.core.batches import checked, tensors_in
from simprune.core.pieces import pieces


class Peekable:
    """Batches whose first walk continues the iterator from which `first` took a batch.

    So a loader that is slow to start is not started just to look at its first batch. After `divide`, walks give batches
    of fewer inputs.

    Args:
        batches: an iterable that can be walked more than once.
        name: what the batches are called in errors.

    Raises:
        ValueError: for what can be walked only once; by `first`, when there is no batch; and by walks, for NaN, which
            would spoil all sums over inputs.

    >>> batches = Peekable([1, 2, 3], "calibration")
    >>> batches.first, list(batches), list(batches)
    (1, [1, 2, 3], [1, 2, 3])
    """

    def __init__(self, batches: Iterable, name: str) -> None:
        self.batches, self.name = checked(batches, name), name
        self._begun: tuple[Any, Iterator] | None = None
        self._size: int | None = None

    @property
    def first(self) -> Any:
        """The first batch."""
        if self._begun is None:
            rest = iter(self.batches)
            try:
                self._begun = next(rest), rest
            except StopIteration:
                raise ValueError(f"{self.name} has no batches; give at least one") from None
        self._check(self._begun[0], 1)
        return self._begun[0]

    def _check(self, batch: Any, number: int) -> Any:
        if any(tensor.is_floating_point() and bool(tensor.isnan().any()) for tensor in tensors_in(batch)):
            raise ValueError(f"{self.name}: batch {number} holds NaN; leave these inputs out, or replace the values")
        return batch

    def divide(self, size: int) -> None:
        """Walks give the same inputs in batches of at most `size` from now on.

        >>> import torch
        >>> batches = Peekable([torch.zeros(3, 2)], "calibration")
        >>> batches.divide(2)
        >>> [len(batch) for batch in batches], len(batches.first)
        ([2, 1], 3)
        """
        self._size = size

    def set_epoch(self, epoch: int) -> None:
        """The next walk begins anew, since a training sets the order of its batches (`batches.set_epoch`) by epoch."""
        self._begun = None

    def __len__(self) -> int:
        if self._size is not None:
            raise TypeError(f"the {self.name} batches are divided on the way, so their number is not known")
        return len(self.batches)  # pyright: ignore[reportArgumentType]  # TypeError where the batches have no length

    def __iter__(self) -> Iterator[Any]:
        begun, self._begun = self._begun, None
        batches = iter(self.batches) if begun is None else chain([begun[0]], begun[1])
        batches = (self._check(batch, number) for number, batch in enumerate(batches, 1))
        size = self._size
        return batches if size is None else chain.from_iterable(pieces(batch, size) for batch in batches)
