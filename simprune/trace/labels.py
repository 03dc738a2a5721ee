"""Labels: the numbers of channels of a tensor's entries, as a tensor of its shape that mostly needs no memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

FREE = -1  # the number of an entry that belongs to no channel, such as padding


def along(numbers: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Numbers of channels as a tensor of this shape, which needs no memory."""
    return numbers.view([-1 if at == dim % len(shape) else 1 for at in range(len(shape))]).expand(shape)


def has_channels(value: Tensor) -> bool:
    """Whether a tensor may hold activations; integers and flags are indices and masks."""
    return value.is_floating_point() or value.is_complex()


def thin(labels: Tensor, whole: int | None = None) -> Tensor:
    """Labels with one entry along dimensions in which they only repeat; the dimension `whole` keeps its length."""
    for dim in range(labels.ndim):
        if labels.stride(dim) == 0 and labels.shape[dim] > 1 and dim != whole:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varies(labels: Tensor, dim: int) -> bool:
    """Whether different channels lie along a dimension; entries of no channel do not count."""
    if not labels.numel() or labels.stride(dim) == 0 or labels.shape[dim] == 1:
        return False
    labels = thin(labels)
    highest = labels.amax(dim, keepdim=True)
    return bool(((labels != highest) & (labels != FREE)).any())


def lies_elsewhere(labels: Tensor) -> bool:
    """Whether different channels lie along another dimension than the last one."""
    return any(varies(labels, dim) for dim in range(labels.ndim - 1))


def classed(labels: Tensor, classes: np.ndarray) -> Tensor:
    """Labels with the number of a channel's class in place of its own."""
    numbers = thin(labels)
    of_class = torch.from_numpy(classes).long()[numbers.clamp(min=0)]
    return torch.where(numbers == FREE, FREE, of_class).expand(labels.shape)


def split_axes(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Dimensions of a view that share dimensions of its source, where they are several.

    >>> list(split_axes((2, 6, 4), (2, 2, 3, 4)))
    [(1, 2)]
    >>> list(split_axes((2, 6, 4), (2, 24)))
    []
    """
    at = there = 0
    while at < len(before) and there < len(after):
        first, (mine, theirs) = there, (before[at], after[there])
        at, there = at + 1, there + 1
        while mine != theirs:
            if mine < theirs:
                mine, at = mine * before[at], at + 1
            else:
                theirs, there = theirs * after[there], there + 1
        dims = tuple(dim for dim in range(first, there) if after[dim] > 1)
        if len(dims) > 1:
            yield dims
