"""Batches of which the first can be looked at without a further walk over all of them."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from simprune.core.batches import checked


class Peekable:
    """Batches whose first walk continues the iterator from which `first` took a batch.

    So a loader that is slow to start is not started just to look at its first batch.

    Args:
        batches: an iterable that can be walked more than once.
        name: what the batches are called in errors.

    Raises:
        ValueError: for what can be walked only once, and, by `first`, when there is no batch.

    >>> batches = Peekable([1, 2, 3], "calibration")
    >>> batches.first, list(batches), list(batches)
    (1, [1, 2, 3], [1, 2, 3])
    """

    def __init__(self, batches: Iterable, name: str) -> None:
        self.batches, self.name = checked(batches, name), name
        self._begun: tuple[Any, Iterator] | None = None

    @property
    def first(self) -> Any:
        """The first batch."""
        if self._begun is None:
            rest = iter(self.batches)
            try:
                self._begun = next(rest), rest
            except StopIteration:
                raise ValueError(f"{self.name} has no batches; give at least one") from None
        return self._begun[0]

    def __len__(self) -> int:
        return len(self.batches)  # pyright: ignore[reportArgumentType]  # TypeError where the batches have no length

    def __iter__(self) -> Iterator[Any]:
        begun, self._begun = self._begun, None
        return iter(self.batches) if begun is None else chain([begun[0]], begun[1])
