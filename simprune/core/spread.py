"""Variance of rows from sums alone: memory O(width), where a covariance matrix would take its square."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK = 1 << 22  # entries that are in float64 at once


@dataclass
class Spread:
    """Count, mean and summed squared deviations of rows, in float64; exact to update batch by batch.

    >>> rows = torch.randn(100, 3, dtype=torch.float64)
    >>> spread = Spread()
    >>> spread.update(rows[:40]).update(rows[40:]).count
    100
    >>> abs(spread.variance - float(rows.var(0, correction=0).sum())) < 1e-12
    True
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: float = 0.0

    def update(self, rows: Tensor) -> "Spread":
        """Add (n, width) rows."""
        for chunk in rows.split(max(1, CHUNK // max(rows.shape[1], 1))):
            chunk = chunk.double()
            mean = chunk.mean(0)
            self.merge(Spread(len(chunk), mean, float((chunk - mean).square().sum())))
        return self

    def merge(self, other: "Spread") -> "Spread":
        """Add the rows of another one."""
        count = self.count + other.count
        if other.count:
            shift = other.mean - self.mean.to(other.mean)
            self.squares += other.squares + float(shift.square().sum()) * self.count * other.count / count
            self.mean, self.count = self.mean.to(other.mean) + shift * (other.count / count), count
        return self

    @property
    def varies(self) -> bool:
        """Whether rows differ by more than rounding in single precision."""
        return self.squares > 1e-13 * self.count * float(self.mean.square().sum())

    @property
    def variance(self) -> float:
        """Variance of a row, summed over its entries."""
        return self.squares / max(self.count, 1)
