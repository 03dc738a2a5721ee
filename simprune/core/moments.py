"""Count, mean and centred second moment of rows: exact to update, exact to merge, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 256  # width below which a product by parts is not worth it


@dataclass
class Moments:
    """Moments of N rows of width D; `scatter` is the sum of (x - mean)(x - mean)^T.

    Memory O(D^2); one update of n rows costs one n x D x D product.

    >>> rows = torch.randn(100, 3, dtype=torch.float64)
    >>> once = Moments.of(rows)
    >>> halves = Moments.of(rows[:40]).merge(Moments.of(rows[40:]))
    >>> torch.allclose(once.covariance, halves.covariance)
    True
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> "Moments":
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zeros, torch.zeros(width, width, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Moments of a (N, D) tensor, centred before the product so that offsets cost no digits."""
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"expected rows of shape (N, D) with N >= 1; got {tuple(rows.shape)}")
        rows = rows.double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, gram(centred.T))

    def update(self, rows: Tensor) -> "Moments":
        """Add a batch of rows in place."""
        return self.merge(Moments.of(rows))

    def merge(self, other: "Moments") -> "Moments":
        """Add another accumulator in place; the order does not matter beyond rounding."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge moments of width {len(self.mean)} and {len(other.mean)}")
        count = self.count + other.count
        if count:
            shift = other.mean - self.mean
            self.scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / count)
            self.mean = self.mean + shift * (other.count / count)
            self.count = count
        return self

    def about_origin(self) -> "Moments":
        """The same rows with their second moment taken about zero in place of the mean."""
        scatter = self.scatter + self.count * torch.outer(self.mean, self.mean)
        return Moments(self.count, torch.zeros_like(self.mean), scatter)

    @property
    def covariance(self) -> Tensor:
        """(D, D) population covariance."""
        return self.scatter / self.count


def gram(columns: Tensor) -> Tensor:
    """The product of a (D, N) matrix with its own transpose, of which half is computed and half mirrored.

    >>> columns = torch.randn(600, 3)
    >>> torch.allclose(gram(columns), columns @ columns.T, atol=1e-5)
    True
    """
    width = len(columns)
    if width < SMALL:
        return columns @ columns.T
    step, product = -(-width // 8), columns.new_empty(width, width)
    for start in range(0, width, step):
        stop = min(start + step, width)
        part = columns[start:stop] @ columns[start:].T
        product[start:stop, start:] = part
        product[start:, start:stop] = part.T
    return product
