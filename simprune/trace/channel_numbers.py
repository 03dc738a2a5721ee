"""Numbers of channels, of which some go together and some have to stay."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from simprune.trace.labels import FREE, classed, thin, varies

PARAMETER, BUFFER = 1, 2  # kinds of stored tensors


class ChannelNumbers:
    """The numbers that were given out, the ties between them, and the reasons for which some of them stay."""

    def __init__(self) -> None:
        self._count = 0
        self._ties: list[Tensor] = []  # (2, n): numbers that go together
        self._pins: dict[int, str] = {}  # numbers that stay, with the reason
        self._alike: list[tuple[Tensor, tuple[int, ...], str]] = []  # channels must not differ along these dimensions
        self._stored: dict[str, Tensor] = {}  # tensors of the model with a number for every entry
        self._owners: list[Tensor] = []  # by number, up to the last of these: `PARAMETER`, `BUFFER` or 0

    def new(self, count: int) -> Tensor:
        """(count,) numbers that nothing has yet."""
        self._count += count
        return torch.arange(self._count - count, self._count)

    def of_entries(self, name: str, tensor: Tensor) -> Tensor:
        """A number for every entry of a tensor of the model: which of its dimensions holds channels shows later."""
        labels = self.new(tensor.numel()).view(tensor.shape)
        owner = PARAMETER if isinstance(tensor, nn.Parameter) else BUFFER
        others = self._count - labels.numel() - sum(map(len, self._owners))
        self._owners += [torch.zeros(others, dtype=torch.int8), torch.full((labels.numel(),), owner, dtype=torch.int8)]
        self._stored[name] = labels
        return labels

    def is_stored(self, labels: Tensor, least: int = PARAMETER) -> bool:
        """Whether all channels of a tensor come from stored tensors, or from buffers where `least` is `BUFFER`."""
        if not self._stored:
            return False
        if len(self._owners) > 1:
            self._owners = [torch.cat(self._owners)]
        [owners], numbers = self._owners, thin(labels)
        numbers = numbers[numbers != FREE]
        if not numbers.numel() or bool((numbers >= len(owners)).any()):
            return False
        return bool((owners[numbers] >= least).all())

    def stored(self) -> dict[str, tuple[int, Tensor]]:
        """The dimension of channels, and the number of every channel, of tensors with a number for every entry.

        It is the one at whose indices all entries have gone together with the same channels; entries that nothing was
        combined with, such as positions that the example does not reach, fit in anywhere. Of several it is the last
        one, and so it is where none fits.
        """
        if not self._stored:
            return {}
        classes = self.classes()
        alone = np.bincount(classes) == 1
        dims: dict[str, tuple[int, Tensor]] = {}
        for name, labels in self._stored.items():
            now = classed(labels, classes)
            unused = torch.from_numpy(alone)[now]
            long = [dim for dim, size in enumerate(labels.shape) if size > 1]
            fits = [dim for dim in long if _agree(now.movedim(dim, 0), unused.movedim(dim, 0))]
            dim = (fits or long)[-1]
            dims[name] = dim, self.read(labels, dim)
        return dims

    def pinned(self, reason: str) -> Tensor:
        """A number that stays, for a reason."""
        number = self.new(1).squeeze()  # without a dimension, so that it expands to a single number as well
        self._pins[int(number)] = reason
        return number

    def pin(self, labels: Tensor, reason: str) -> Tensor:
        """Channels that stay, with the reason; returns them."""
        self.tie(labels, self.pinned(reason).expand(labels.shape))
        return labels

    def are_pinned(self, labels: Tensor) -> bool:
        """Whether it is known by now that all these channels stay, and not only by ties."""
        return all(number in self._pins for number in labels.unique().tolist())

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


def _agree(numbers: Tensor, unused: Tensor) -> bool:
    """Whether the numbers at every index of the first dimension are the same, apart from those that are not used."""
    rows, unused = (part.reshape(len(part), -1) for part in (numbers, unused))
    least = rows.masked_fill(unused, torch.iinfo(rows.dtype).max).amin(1)
    most = rows.masked_fill(unused, FREE).amax(1)
    return bool(((least == most) | (most == FREE)).all())
