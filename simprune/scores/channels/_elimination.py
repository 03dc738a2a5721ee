"""Removing units from a layer's inputs one after another, with the cost of every next removal known at each step.

Let H be the inverse covariance of the inputs that remain, and W the weights that are refitted to them. Without the
inputs u, the error tr(W_u H_uu^-1 W_u^T) is added. Then H loses H_u^T H_uu^-1 H_u, and W loses W_u H_uu^-1 H_u. A step
needs the rows of H for the removed inputs, and the blocks H_uu and W_u^T W_u of every remaining unit, which are updated
in place. The rest of H and W is updated for several removals at once, by one matrix product over what remains.
"""

from typing import Protocol

import torch
from torch import Tensor

from simprune.core.moments import strips

PENDING = 192  # removed inputs, after which what remains is updated; of a wide layer, every 12th of them
AHEAD = 2  # as many times the units that are removed until then have their products with all weights ready


class Inverse(Protocol):
    """The inverse covariance of inputs."""

    def blocks(self, k: int) -> Tensor:
        """(units, k, k) of the inputs of every unit, which lie next to each other."""
        ...

    def rows(self, columns: slice) -> Tensor:
        """(k, inputs) rows of some inputs."""
        ...

    def reduced(self, rows: Tensor, halves: Tensor, remaining: Tensor) -> "Inverse":
        """The inverse covariance of the inputs that remain.

        Args:
            rows: (removed, inputs), those of the removed inputs, each as it was when its unit was removed.
            halves: the same rows, multiplied with the inverse of the unit's block.
            remaining: (inputs,) true for those that remain.
        """
        ...


class Dense:
    """The inverse covariance as a matrix (inputs, inputs)."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def blocks(self, k: int) -> Tensor:
        units = self.matrix.unflatten(1, (-1, k)).unflatten(0, (-1, k))  # (units, k, units, k)
        return units.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()

    def rows(self, columns: slice) -> Tensor:
        return self.matrix[columns]

    def reduced(self, rows: Tensor, halves: Tensor, remaining: Tensor) -> "Dense":
        numbers = remaining.nonzero().flatten()
        left = self.matrix.index_select(0, numbers).index_select(1, numbers)
        rows, halves = rows[:, remaining], halves[:, remaining]
        for start, stop in strips(len(left)):  # half is computed and half mirrored
            left[start:stop, start:].addmm_(rows[:, start:stop].T, halves[:, start:], alpha=-1)
            left[stop:, start:stop] = left[start:stop, stop:].T
        return Dense(left)


class Factored:
    """The same as (1 - A^T A) / damping, for a factor A (rows, inputs) of far fewer rows than inputs."""

    def __init__(self, factor: Tensor, damping: Tensor) -> None:
        self.factor, self.damping = factor, damping

    def blocks(self, k: int) -> Tensor:
        parts = self.factor.unflatten(1, (-1, k)).movedim(1, 0)  # (units, rows, k)
        return (torch.eye(k, dtype=parts.dtype) - parts.mT @ parts) / self.damping

    def rows(self, columns: slice) -> Tensor:
        rows = -self.factor[:, columns].T @ self.factor
        rows[:, columns].diagonal().add_(1)
        return rows / self.damping

    def reduced(self, rows: Tensor, halves: Tensor, remaining: Tensor) -> "Factored":
        left, values, _ = torch.linalg.svd(self.factor[:, ~remaining], full_matrices=False)
        # Eigenvalues of the removed inputs' block of the inverse, times the damping; rounding must not make them zero.
        growth = (1 - values.square()).clamp(min=1e-15).rsqrt() - 1
        kept = self.factor[:, remaining]
        return Factored(kept + (left * growth) @ (left.T @ kept), self.damping)


class Elimination:
    """The units of one layer's inputs while they are removed.

    Args:
        inverse: the inverse covariance of the units' inputs, unit after unit.
        weights: (outputs, inputs) of the same inputs.
        units: how many there are; all have equally many inputs.
    """

    def __init__(self, inverse: Inverse, weights: Tensor, units: int) -> None:
        self._k = weights.shape[1] // units
        self._inverse, self._blocks = inverse, inverse.blocks(self._k)  # the inverse says in which precision all is
        self._weights = weights.T.to(self._blocks).contiguous()  # (inputs, outputs)
        self._units = torch.arange(units)  # the numbers of those that remained at the last update
        self._places = list(range(units))  # of every unit among these
        self._costs = torch.full((units,), float("inf"), dtype=torch.float64)
        parts = self._weights.view(units, self._k, -1)
        self._squares = parts @ parts.mT  # (units, k, k)
        self._begin()

    def _begin(self) -> None:
        """Nothing is pending: `_rows`, `_halves` and the others hold what was removed since the last update."""
        inputs, outputs = self._weights.shape
        self._wait = max(PENDING, inputs // 12)
        most = min(self._wait + self._k, inputs)
        self._gone = torch.zeros(len(self._units), dtype=torch.bool)
        self._pending = 0
        self._rows, self._halves, self._products = (self._weights.new_empty(most, inputs) for _ in range(3))
        self._removed = self._weights.new_empty(most, outputs)  # their weights, as they were when they were removed
        self._ready: dict[int, Tensor] = {}  # by place: (k, inputs) products of a unit's weights with all weights

    def _make_ready(self, costs: Tensor) -> None:
        count = min(AHEAD * max(1, self._wait // self._k), len(costs))
        places = costs.topk(count, largest=False).indices
        parts = self._weights.view(len(self._units), self._k, -1)[places]
        products = parts.flatten(0, 1) @ self._weights.T
        self._ready = dict(zip(places.tolist(), products.unflatten(0, (count, -1)), strict=True))

    def costs(self) -> Tensor:
        """(units,) errors that the removal of one more unit adds, the other weights refitted; infinite if removed."""
        if self._k == 1:
            costs = (self._squares / self._blocks)[:, 0, 0]
        else:
            costs = (torch.linalg.inv(self._blocks) * self._squares).sum((1, 2))
        costs = costs.masked_fill_(self._gone, float("inf"))
        if not self._ready:
            self._make_ready(costs)
        self._costs[self._units] = costs.double()
        return self._costs

    def remove(self, unit: int) -> None:
        """Remove a unit, and refit the weights to the inputs that remain."""
        place, k, before = self._places[unit], self._k, self._pending
        columns, now = slice(place * k, (place + 1) * k), slice(before, before + k)
        rows, halves, removed = self._rows[:before], self._halves[:before], self._removed[:before]
        row = torch.addmm(self._inverse.rows(columns), rows[:, columns].T, halves, alpha=-1)
        half = row / row[:, columns] if k == 1 else torch.linalg.solve(row[:, columns], row)
        weights = torch.addmm(self._weights[columns], halves[:, columns].T, removed, alpha=-1)  # (k, outputs)
        ready = self._ready.get(place)
        ready = self._weights[columns] @ self._weights.T if ready is None else ready
        products = torch.addmm(ready, halves[:, columns].T, self._products[:before], alpha=-1)
        self._rows[now], self._halves[now], self._removed[now], self._products[now] = row, half, weights, products
        cross = torch.addmm(products, weights @ removed.T, halves, alpha=-1)  # of the removed with all current weights
        # W_u becomes W_u - W_r half_u: its products lose half_u^T (cross_u - W_r^T W_r half_u / 2), and this transposed
        cross.addmm_(weights @ weights.T, half, alpha=-0.5)
        if k == 1:
            self._blocks.view(-1).addcmul_(row[0], half[0], value=-1)
            self._squares.view(-1).addcmul_(half[0], cross[0], value=-2)
        else:
            row, half, cross = (part.view(k, -1, k).transpose(0, 1) for part in (row, half, cross))  # (units, k, k)
            self._blocks -= row.mT @ half
            change = half.mT @ cross
            self._squares -= change + change.mT
        self._costs[unit] = float("inf")
        self._gone[place] = True
        self._blocks[place] = torch.eye(k, dtype=row.dtype)
        self._pending += k
        if self._pending >= self._wait:
            self._update()

    def _update(self) -> None:
        """Update H and W for what is pending, and leave out the units that were removed."""
        left = ~self._gone
        if not left.any():
            return
        inputs = left.repeat_interleave(self._k)
        rows, halves, removed = (part[: self._pending] for part in (self._rows, self._halves, self._removed))
        self._inverse = self._inverse.reduced(rows, halves, inputs)
        self._weights = self._weights[inputs].addmm_(halves[:, inputs].T, removed, alpha=-1)
        self._units, self._blocks, self._squares = self._units[left], self._blocks[left], self._squares[left]
        for place, unit in enumerate(self._units.tolist()):
            self._places[unit] = place
        self._begin()
