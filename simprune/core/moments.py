"""Count, mean and centred second moment of rows: exact to update, exact to merge, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 256  # width below which a product by parts is not worth it
WIDE = 1024  # width from which on sums of products are in single precision, which is what rows have


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
            step = shift.to(self.scatter)
            self.scatter = self.scatter + other.scatter.to(self.scatter)
            self.scatter.addr_(step, step, alpha=self.count * other.count / count)
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


class Collected:
    """Rows (N, D) that come in parts, for their moments, in as little memory as these need.

    The rows themselves are held, in their own precision, while they take less memory than their products: 8 D^2 bytes,
    or 4 D^2 from `WIDE` columns on. Products are computed in the rows' precision, of halves in single precision.

    >>> collected, rows = Collected(), torch.randn(100, 3, dtype=torch.float64)
    >>> for part in rows.split(30):
    ...     collected.add(part)
    >>> torch.allclose(collected.moments().covariance, Moments.of(rows).covariance)
    True
    """

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[Tensor] = []
        self._moments: Moments | None = None

    def add(self, rows: Tensor) -> None:
        """Add (n, D) rows, which nobody may change afterwards."""
        self._rows.append(rows)
        self.count += len(rows)
        width = rows.shape[1]
        held = sum(len(part) for part in self._rows) * width * rows.element_size()
        if self._moments is not None or held > width * width * _precision(width).itemsize:
            self._sum_up()

    def rows(self) -> Tensor | None:
        """(N, D), or None where products have taken their place."""
        return torch.cat(self._rows) if self._rows else None

    def moments(self) -> Moments:
        """Of all rows so far, in float64; ValueError where there are none."""
        moments = self.as_summed()
        return Moments(moments.count, moments.mean, moments.scatter.double())

    def as_summed(self) -> Moments:
        """As `moments`, products in the precision in which they were summed up."""
        if self._rows:
            self._sum_up()
        if self._moments is None:
            raise ValueError("expected rows of shape (N, D) with N >= 1; got none")
        return self._moments

    def _sum_up(self) -> None:
        rows = torch.cat(self._rows)
        self._rows = []
        rows = rows.float() if rows.dtype.itemsize < 4 else rows
        mean = rows.mean(0, dtype=torch.float64)  # exact, so that a constant column has no variance
        rows -= mean.to(rows)
        products = gram(rows.T)
        if not bool(products.diagonal().isfinite().all()):
            largest = float(rows.abs().max())
            raise ValueError(
                f"a layer reads numbers of {largest:.1g}, whose squares are beyond float32; scale the inputs"
            )
        part = Moments(len(rows), mean, products.to(_precision(rows.shape[1])))
        self._moments = part if self._moments is None else self._moments.merge(part)


def _precision(width: int) -> torch.dtype:
    """Of sums of products of rows of a width."""
    return torch.float32 if width >= WIDE else torch.float64


def gram(columns: Tensor) -> Tensor:
    """The product of a (D, N) matrix with its own transpose, of which half is computed and half mirrored.

    >>> columns = torch.randn(600, 3)
    >>> torch.allclose(gram(columns), columns @ columns.T, atol=1e-5)
    True
    """
    width = len(columns)
    if width < SMALL:
        return columns @ columns.T
    product = columns.new_empty(width, width)
    for start, stop in strips(width):
        part = columns[start:stop] @ columns[start:].T
        product[start:stop, start:] = part
        product[start:, start:stop] = part.T
    return product


def strips(width: int) -> list[tuple[int, int]]:
    """First and last rows, the last not included, of parts of a symmetric matrix that are computed one by one.

    >>> strips(4), strips(600)[:2]
    ([(0, 4)], [(0, 75), (75, 150)])
    """
    step = width if width < SMALL else -(-width // 8)
    return [(start, min(start + step, width)) for start in range(0, width, max(step, 1))]
