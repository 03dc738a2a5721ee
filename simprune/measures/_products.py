"""Measures that are one matrix product of prepared vectors, and the centring they start from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simprune.core.neighbours import unit_scaled_
from simprune.measures._base import Measure

TILE = 2**21  # float64 entries held at once while products are accumulated (16 MiB)


def centred(X: Tensor) -> Tensor:
    """A copy of X (N, D) with every column's mean removed; exactly zero where a column is constant.

    The first row goes first: that is exact for constant columns and removes a common offset before anything
    is summed, so float32 keeps its digits.
    """
    shifted = X - X[0]
    return shifted.sub_(shifted.mean(0))


def unit_norm(X: Tensor) -> Tensor:
    """X (N, D) divided by its Frobenius norm, and overwritten; zero stays zero."""
    rows = unit_scaled_(X)
    norm = torch.linalg.vector_norm(rows)
    return rows / torch.where(norm > 0, norm, 1.0)


@dataclass(frozen=True, eq=False)
class Vector:
    """phi(X) as a matrix of `height` rows (held whole, or formed row by row), and one number for `_score`."""

    height: int
    size: Tensor  # 0-d float64: a squared norm, a rank, a trace
    values: Any = field(repr=False)  # (height, any) tensor unless `_rows` is overridden


@dataclass(frozen=True)
class InnerProduct(Measure):
    """Measures whose pair value is `_score(<phi(X), psi(Y)>, size of X, size of Y)`.

    `_prepare` returns a `Vector`. Products are accumulated in float64 over tiles of rows, so that
    besides the prepared objects about `TILE` numbers are held, however many rows there are.
    """

    def _score(self, inner: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
        """Elementwise and broadcasting, so that one pair and all pairs are the same formula."""
        raise NotImplementedError

    def _rows(self, item: Vector, start: int, stop: int) -> Tensor:
        """Rows start..stop of phi."""
        return item.values[start:stop]

    def _second_rows(self, item: Vector, start: int, stop: int) -> Tensor:
        """Rows start..stop of psi, the second argument's side; the same unless the measure is asymmetric."""
        return self._rows(item, start, stop)

    def _inner(self, a: Vector, b: Vector) -> Tensor:
        return self._product([a], [b])[0, 0]

    def _compare(self, a: Vector, b: Vector) -> Tensor:
        return self._score(self._inner(a, b), a.size, b.size)

    def _matrix(self, items: Sequence[Vector]) -> Tensor:
        sizes = torch.stack([item.size for item in items])
        return self._score(self._all_products(items), sizes[:, None], sizes[None, :])

    def _all_products(self, items: Sequence[Vector]) -> Tensor:
        """Inner products (L, L) in float64; overridden where a shape of all items allows a cheaper way."""
        return self._product(items, items)

    def _product(self, firsts: Sequence[Vector], seconds: Sequence[Vector]) -> Tensor:
        """Inner products (len(firsts), len(seconds)) in float64."""
        shared = self.symmetric and firsts is seconds
        height = firsts[0].height
        width = self._rows(firsts[0], 0, 1).numel()
        count = len(firsts) if shared else len(firsts) + len(seconds)
        step = min(height, max(8, TILE // (count * width)))
        buffer = firsts[0].size.new_empty(count, step * width)
        total = buffer.new_zeros(len(firsts), len(seconds))
        for start in range(0, height, step):
            stop = min(height, start + step)
            if torch.is_grad_enabled() and any(item.size.requires_grad for item in (*firsts, *seconds)):
                buffer = torch.empty_like(buffer)  # gradients need every tile until the end
            tile = buffer[:, : (stop - start) * width]
            for k, item in enumerate(firsts):
                tile[k] = self._rows(item, start, stop).flatten()
            if not shared:
                for k, item in enumerate(seconds, len(firsts)):
                    tile[k] = self._second_rows(item, start, stop).flatten()
            total.addmm_(tile[: len(firsts)], (tile if shared else tile[len(firsts) :]).T)
        return total
