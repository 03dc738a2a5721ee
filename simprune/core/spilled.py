"""Rows that are collected batch by batch: in memory while they are few, then in a temporary file on disk."""

import tempfile
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from simprune.core.store import naming, write_all

IN_MEMORY = 2**28  # bytes
CHUNK = 2**23  # entries that are looked at together


class Spilled:
    """Rows (N, width) of one type, on disk; they are read in chunks, and the file goes with the object.

    >>> rows = Spilled(torch.zeros(2, 3))
    >>> rows.add(torch.ones(1, 3))
    >>> rows.shape, torch.cat([*chunks(rows)]).sum(1)
    (torch.Size([3, 3]), tensor([0., 0., 3.]))
    """

    def __init__(self, rows: Tensor) -> None:
        self.dtype, self.width, self.count = rows.dtype, rows.shape[1], 0
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # it is open as long as the object lives
        weakref.finalize(self, self._file.close)
        self.add(rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.count, self.width))

    def __len__(self) -> int:
        return self.count

    def add(self, rows: Tensor) -> None:
        """Append (n, width) rows.

        Raises:
            OSError: in one line, where the disk of temporary files is full.
        """
        self._file.seek(0, 2)
        with naming(f"{tempfile.gettempdir()} (for temporary files; the variable TMPDIR names another folder)"):
            write_all(self._file, rows.contiguous().flatten().view(torch.uint8).numpy().data)
        self.count += len(rows)

    def read(self, start: int, stop: int) -> Tensor:
        """(stop - start, width) rows."""
        size = self.width * self.dtype.itemsize
        self._file.seek(start * size)
        raw = bytearray(self._file.read((stop - start) * size))
        return torch.frombuffer(raw, dtype=self.dtype).view(stop - start, self.width)


Stored = Tensor | Spilled


class Collecting:
    """Rows that come batch by batch.

    >>> collecting = Collecting()
    >>> collecting.add(torch.zeros(2, 3))
    >>> collecting.add(torch.ones(1, 3))
    >>> collecting.result().shape
    torch.Size([3, 3])
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._size = 0
        self._spilled: Spilled | None = None

    def add(self, rows: Tensor) -> None:
        """Append (n, width) rows, on the CPU."""
        if self._spilled is not None:
            self._spilled.add(rows)
            return
        self._parts.append(rows)
        self._size += rows.numel() * rows.element_size()
        if self._size > IN_MEMORY:
            self._spilled = Spilled(self._parts[0])
            for part in self._parts[1:]:
                self._spilled.add(part)
            self._parts = []

    def result(self) -> Stored:
        """All rows: a tensor, or where they take more than `IN_MEMORY` what is on disk."""
        return torch.cat(self._parts) if self._spilled is None else self._spilled


def chunks(rows: Stored) -> Iterator[Tensor]:
    """The rows in their order, a few at a time; those of equal shape are divided alike."""
    step = max(1, CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        yield rows.read(start, stop) if isinstance(rows, Spilled) else rows[start:stop]
