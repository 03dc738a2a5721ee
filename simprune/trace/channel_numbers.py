"""Numbers of channels, of which some go together and some have to stay."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from simprune.trace.labels import FREE, classed, thin, varies


class ChannelNumbers:
    """The numbers that were given out, the ties between them, and the reasons for which some of them stay."""

    def __init__(self) -> None:
        self._count = 0
        self._ties: list[Tensor] = []  # (2, n): numbers that go together
        self._pins: dict[int, str] = {}  # numbers that stay, with the reason
        self._alike: list[tuple[Tensor, tuple[int, ...], str]] = []  # channels must not differ along these dimensions

    def new(self, count: int) -> Tensor:
        """(count,) numbers that nothing has yet."""
        self._count += count
        return torch.arange(self._count - count, self._count)

    def pinned(self, reason: str) -> Tensor:
        """A number that stays, for a reason."""
        number = self.new(1).squeeze()  # without a dimension, so that it expands to a single number as well
        self._pins[int(number)] = reason
        return number

    def pin(self, labels: Tensor, reason: str) -> Tensor:
        """Channels that stay, with the reason; returns them."""
        self.tie(labels, self.pinned(reason).expand(labels.shape))
        return labels

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Channels of two tensors of one shape go together, entry by entry."""
        if a is b:
            return
        for dim in range(a.ndim):
            if a.stride(dim) == b.stride(dim) == 0 and a.shape[dim] > 1:
                a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
        chosen = (a != b) & (a != FREE) & (b != FREE)
        if chosen.any():
            pairs = torch.unique(a[chosen] * self._count + b[chosen])  # one number per pair is sorted much faster
            self._ties.append(torch.stack([pairs // self._count, pairs % self._count]))

    def tie_rows(self, rows: Tensor) -> None:
        """Tie entries of all rows, index by index."""
        self.tie(rows[:1].expand_as(rows), rows)

    def read(self, labels: Tensor, dim: int) -> Tensor:
        """One number per entry along a dimension; all numbers in an entry are tied."""
        rows = thin(labels.movedim(dim, 0), 0)
        columns = rows.reshape(len(rows), -1)  # one column for a vector
        first = columns.amax(1)
        self.tie(first[:, None].expand_as(columns), columns)
        return first

    def reduced(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """One number for all entries along some dimensions, which are tied."""
        if not dims:
            return labels
        labels = thin(labels)
        first = labels.amax(dims, keepdim=True)
        self.tie(first.expand_as(labels), labels)
        return first

    def keep_alike(self, labels: Tensor, dims: Sequence[int], reason: str) -> None:
        """Channels that differ along one of these dimensions, once all ties are known, stay for a reason."""
        self._alike.append((labels, tuple(dims), reason))

    def settle(self) -> np.ndarray:
        """(numbers,) the classes of channels that go together, with those that have to be alike pinned."""
        classes = self.classes()
        for labels, dims, reason in self._alike:
            if any(varies(classed(labels, classes), dim) for dim in dims):
                self.pin(labels, reason)
        return self.classes()

    def reasons(self, classes: np.ndarray) -> dict[int, str]:
        """Why classes stay, the first reason of each."""
        return {int(classes[number]): reason for number, reason in reversed(self._pins.items())}

    def classes(self) -> np.ndarray:
        """(numbers,) the class of every number, by the ties that are known."""
        ties = torch.cat(self._ties, 1).numpy() if self._ties else np.empty((2, 0), dtype=int)
        graph = coo_array((np.ones(ties.shape[1]), (ties[0], ties[1])), shape=(self._count, self._count))
        return connected_components(graph, directed=False)[1]
