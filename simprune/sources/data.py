"""Data of a run: batches to estimate redundancy with, to train on and to check with."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune.core.names import did_you_mean


@dataclass(frozen=True)
class Data:
    """Iterables of batches, all of which can be walked more than once (a list, `Batches`, a DataLoader).

    Args:
        calibration: to estimate redundancy and to repair.
        train: to fine-tune; None without training data.
        test: to check; None without test data.
        validation: to choose an epoch of fine-tuning by; None: some of `train` are held out.

    Raises:
        ValueError: for an iterator or a bare tensor.

    >>> Data(calibration=[torch.zeros(2, 3)]).test is None
    True
    """

    calibration: Iterable
    train: Iterable | None = None
    test: Iterable | None = None
    validation: Iterable | None = None

    def __post_init__(self):
        for name, batches in vars(self).items():
            if batches is None and name != "calibration":
                continue
            what = f"{name} must be an iterable of batches"
            if isinstance(batches, Tensor | np.ndarray):
                raise ValueError(f"{what}; got one {type(batches).__name__}, put it into a list: [batch]")
            if isinstance(batches, str) or not isinstance(batches, Iterable):
                raise ValueError(f"{what}; got {type(batches).__name__}")
            if isinstance(batches, Iterator):
                got = type(batches).__name__
                raise ValueError(f"{what} that can be walked again; got a {got}, use list(...)")


class Batches:
    """Tensors of one length cut into batches, in order or, with a `shuffle` seed, reordered on every walk.

    Args:
        tensors: all (N, ...). Of one tensor the batches are tensors, of several they are tuples.
        batch_size: rows of a batch; the last batch may have fewer.
        shuffle: the seed of the order; the n-th walk of two objects with the same seed has the same order.

    Raises:
        ValueError: for no rows, unequal lengths or a batch size below one.

    >>> [tuple(x.shape) for x, y in Batches(torch.zeros(5, 3), torch.arange(5), batch_size=2)]
    [(2, 3), (2, 3), (1, 3)]
    """

    def __init__(self, *tensors: Tensor, batch_size: int = 128, shuffle: int | None = None):
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) != 1 or 0 in lengths:
            raise ValueError(f"expected tensors of one length above zero, got {lengths}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.tensors, self.rows, self.batch_size, self.shuffle = tensors, lengths[0], batch_size, shuffle
        self.walks = 0

    def set_epoch(self, epoch: int) -> None:
        """The next walk has the order of this number, whatever walks there were before."""
        self.walks = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        order = torch.arange(self.rows)
        if self.shuffle is not None:
            order = torch.from_numpy(np.random.default_rng([self.shuffle, self.walks]).permutation(self.rows))
            self.walks += 1
        for rows in order.split(self.batch_size):
            batch = [tensor[rows] for tensor in self.tensors]
            yield tuple(batch) if len(batch) > 1 else batch[0]


def as_data(value: Any, what: str) -> Data:
    """What a user's function returned as a `Data`.

    Args:
        value: a `Data`, a dict of its fields, or calibration batches alone.
        what: the function, as errors call it.

    Raises:
        ValueError: for a dict with other keys or without calibration batches, and as of `Data`.

    >>> as_data([torch.zeros(2, 3)], "a list").train is None
    True
    """
    if isinstance(value, Data):
        return value
    if isinstance(value, Mapping):
        known = [field.name for field in fields(Data)]
        for key in value:
            if key not in known:
                raise ValueError(f"{what} returned a key {key!r}; {did_you_mean(str(key), known)}")
        if "calibration" not in value:
            raise ValueError(f"{what} returned no calibration batches, only {list(value)}")
        return Data(**value)
    return Data(calibration=value)
