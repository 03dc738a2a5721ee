"""Rows that come batch by batch, in one block of memory that grows."""

import torch
from torch import Tensor

FIRST = 1024  # rows of the first block


class Rows:
    """(N, D) rows on the CPU; adding n of them costs O(n D) on average.

    A list of small tensors would be scattered in memory between the large, short-lived activations of a network. The
    gaps between them cannot be used again, and grow to several times the size of the rows.

    >>> rows = Rows()
    >>> rows.add(torch.ones(2, 3))
    >>> rows.add(torch.zeros(1, 3))
    >>> len(rows), rows.tensor().sum()
    (3, tensor(6.))
    """

    def __init__(self) -> None:
        self.block: Tensor | None = None
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, rows: Tensor) -> None:
        """Copy (n, D) rows to the end."""
        if self.block is None:
            self.block = torch.empty(0, rows.shape[1], dtype=rows.dtype)
        count = self.count + len(rows)
        if count > len(self.block):
            grown = torch.empty(max(count, FIRST, 2 * len(self.block)), rows.shape[1], dtype=rows.dtype)
            grown[: self.count] = self.block[: self.count]
            self.block = grown
        self.block[self.count : count] = rows
        self.count = count

    def tensor(self) -> Tensor:
        """All rows so far, as a tensor of their own."""
        assert self.block is not None
        return self.block[: self.count].clone()
