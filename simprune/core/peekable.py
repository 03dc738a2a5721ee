"""Batches of which the first can be looked at without a further walk over all of them, and which are checked."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from simprune.core.batches import checked, inputs_of, tensors_in
from simprune.core.pieces import pieces


@dataclass(eq=False)
class Walk:
    """How far a walk over batches is: the number of the batch, from 1, and the batch itself."""

    name: str
    number: int = 0
    batch: Any = None


# Walks that have not come to their end, the last ones to move. Walks that an error or a break cuts short stay, so few
# are held.
WALKS: deque[Walk] = deque(maxlen=4)


class Peekable:
    """Batches whose first walk continues the iterator from which `first` took a batch.

    So a loader that is slow to start is not started just to look at its first batch. After `divide`, walks give batches
    of fewer inputs. `WALKS` says which batch a walk is at, so that errors can name it.

    Args:
        batches: an iterable that can be walked more than once.
        name: what the batches are called in errors.

    Raises:
        ValueError: for what can be walked only once; by `first`, when there is no batch; and by walks, for a batch that
            is none, has no inputs, or holds arrays of numpy or NaN, which would spoil all sums over inputs.

    >>> import torch
    >>> batches = Peekable([torch.tensor([1]), torch.tensor([2])], "calibration")
    >>> batches.first, list(batches), [WALKS[-1].number for _ in batches]
    (tensor([1]), [tensor([1]), tensor([2])], [1, 2])
    """

    def __init__(self, batches: Iterable, name: str) -> None:
        self.batches, self.name = checked(batches, name), name
        self._begun: tuple[Any, Iterator] | None = None
        self._size: int | None = None
        self._dimensions: dict[Any, int] = {}  # of the first batch's inputs, by position or name

    @classmethod
    def of(cls, batches: Iterable, name: str) -> "Peekable":
        """The batches themselves, where they are of this class; their name is the first one then."""
        return batches if isinstance(batches, cls) else cls(batches, name)

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
        where = f"{self.name}: batch {number}"
        numpy = f"{where} holds an array of numpy; give tensors, by torch.as_tensor(array)"
        if isinstance(batch, np.ndarray):
            raise ValueError(numpy)
        try:
            args, kwargs = inputs_of(batch)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        values = {**dict(enumerate(args)), **kwargs}
        if any(isinstance(value, np.ndarray) for value in values.values()):
            raise ValueError(numpy)
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        if any(tensor.is_meta for tensor in tensors_in(batch)):
            raise ValueError(f"{where} is on the meta device and has no values; load the data first")
        if any(tensor.ndim and not len(tensor) for tensor in tensors.values()):
            raise ValueError(f"{where} has no inputs; leave it out")
        dimensions = {key: tensor.ndim for key, tensor in tensors.items()}
        self._dimensions = self._dimensions or dimensions
        for key, tensor in tensors.items():
            if tensor.ndim != self._dimensions.get(key, tensor.ndim):
                raise ValueError(
                    f"{where} has inputs of {tensor.ndim} dimensions, {tuple(tensor.shape)}, and the first batch of "
                    f"{self._dimensions[key]}; give all inputs in batches, whose first dimension counts them"
                )
        if any(tensor.is_floating_point() and bool(tensor.isnan().any()) for tensor in tensors_in(batch)):
            raise ValueError(f"{where} holds NaN; leave these inputs out, or replace the values")
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
        walk, size = Walk(self.name), self._size
        for number, batch in enumerate(batches, 1):
            walk.number, walk.batch = number, self._check(batch, number)
            if walk not in WALKS:
                WALKS.append(walk)
            yield from [batch] if size is None else pieces(batch, size)
        if walk in WALKS:
            WALKS.remove(walk)
