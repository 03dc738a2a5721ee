"""Least squares of one layer over some rows, as the rows themselves where they are few, or as sums of products."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from simprune.core import processes
from simprune.core.holdout import SHARE
from simprune.core.moments import WIDE, Moments, gram
from simprune.trace.layers import stacked

SINGLE = 1e-3  # from this ridge on, the equations of a wide layer are solved in single precision, as its products are

Weights = tuple[Tensor, Tensor]  # (outputs, inputs x kernel) and the intercept (outputs,), in float64
Solve = Callable[[float], Weights]  # of a ridge
Errors = Callable[[float | None], Tensor]  # what weights leave of held-out rows, by their ridge; None: those present


class Sums:
    """The problem over the batches added so far: as rows while there are fewer than inputs, then as products.

    The products of every batch are computed for themselves, so that they are the same in whichever process it runs.

    Args:
        intercept: False for a fit through the origin.
        weight: (outputs, width) of the layer.
    """

    def __init__(self, intercept: bool, weight: Tensor) -> None:
        self.intercept, self.weight, self.count = intercept, weight, 0
        self.parts: list[tuple[int, FewRows]] = []  # the number of a batch of this process, and its rows
        self.products: Products | None = None

    def add(self, number: int, inputs: Tensor, targets: Tensor) -> None:
        """Add inputs (N, width, positions) and targets (N, outputs, positions)."""
        rows = FewRows(_in_full(stacked(inputs).T), _in_full(stacked(targets).T), self.intercept)
        self.parts.append((number, rows))
        self.count += len(rows.inputs)
        if self.count >= self.weight.shape[1]:
            self._sum_up()

    def _sum_up(self) -> None:
        for _, rows in self.parts:
            self.products = rows.products() if self.products is None else self.products.merge(rows.products())
        self.parts = []

    def problem(self, shared: bool) -> "Problem | None":
        """Of this process's batches, or of all; None without rows."""
        shared = shared and processes.count() > 1
        count = sum(processes.gather(self.count)) if shared else self.count
        if count >= self.weight.shape[1]:
            self._sum_up()
            return self._added_up(count) if shared else self.products
        parts = [self.parts]
        if shared:
            parts = processes.gather(parts[0])
        turns = sorted((number, rank, rows) for rank, some in enumerate(parts) for number, rows in some)
        if not turns:
            return None
        rows = [rows for *_, rows in turns]
        inputs, targets = torch.cat([part.inputs for part in rows]), torch.cat([part.targets for part in rows])
        return FewRows(inputs, targets, self.intercept)

    def _added_up(self, count: int) -> "Products":
        """The products of all processes."""
        outputs, width = self.weight.shape
        own = self.products or Products.empty(width, outputs, self.weight.device)
        mean, target = own.mean * (own.count / count), own.target * (own.count / count)
        processes.add_up([mean, target])
        shift, step = own.mean - mean, own.target - target
        gram = own.gram + torch.outer(shift, shift) * own.count
        cross = own.cross + torch.outer(shift, step) * own.count
        total = own.total + step.square().sum() * own.count
        processes.add_up([gram, cross, total])
        return Products(count, mean, target, gram, cross, total)


def merged(first: "Problem | None", second: "Problem | None") -> "Problem":
    """The problem over the rows of both, of which one has rows at least."""
    if first is None or second is None:
        problem = second if first is None else first
        assert problem is not None
        return problem
    if isinstance(first, FewRows) and isinstance(second, FewRows):
        return first.merge(second)
    return first.products().merge(second.products())


def _in_full(rows: Tensor) -> Tensor:
    """Rows in single precision at least: sums over halves would lose digits, or overflow."""
    return rows.float() if rows.dtype.itemsize < 4 else rows


@dataclass(frozen=True)
class Products:
    """Least squares over some rows, as sums of products; those of outputs with outputs are needed for no fit.

    Args:
        count: number of rows.
        mean: (width,) of the inputs; zeros for a fit through the origin.
        target: (outputs,) mean of the targets; zeros for a fit through the origin.
        gram: (width, width) products of inputs about their mean.
        cross: (width, outputs) products of inputs and targets about their means.
        total: sum of squares of the targets about their mean.
    """

    count: int
    mean: Tensor
    target: Tensor
    gram: Tensor
    cross: Tensor
    total: Tensor

    @classmethod
    def of(cls, moments: Moments, width: int) -> "Products":
        """The problem whose inputs are the first `width` columns of the moments, and its targets the others."""
        scatter, mean = moments.scatter, moments.mean
        total = scatter[width:, width:].diagonal().sum()
        return cls(moments.count, mean[:width], mean[width:], scatter[:width, :width], scatter[:width, width:], total)

    @classmethod
    def empty(cls, width: int, outputs: int, device: torch.device) -> "Products":
        """The problem without rows."""
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(0, zeros(width), zeros(outputs), zeros(width, width), zeros(width, outputs), zeros(()))

    def products(self) -> "Products":
        return self

    def merge(self, other: "Products") -> "Products":
        """The problem over the rows of both, in the memory of this one where torch lets it be written to."""
        count = self.count + other.count
        shift, step = other.mean - self.mean, other.target - self.target
        factor, share = self.count * other.count / count, other.count / count
        add = torch.add if self.gram.is_inference() else Tensor.add_
        return Products(
            count,
            self.mean + shift * share,
            self.target + step * share,
            add(self.gram, other.gram).addr_(shift, shift, alpha=factor),
            add(self.cross, other.cross).addr_(shift, step, alpha=factor),
            self.total + other.total + step.square().sum() * factor,
        )

    def solver(self, present: Weights | None = None) -> Solve:
        """The weights of least squared error + ridge x squared change of the present weights (zeros where None)."""
        wanted = self.cross if present is None else self.cross - self.gram @ present[0].T

        def solve(ridge: float) -> Weights:
            damping = ridge * self.gram.diagonal().mean() + 1e-12
            single = len(self.gram) >= WIDE and ridge >= SINGLE
            weight = None if not single else _solved(self.gram.float(), wanted.float(), damping)
            if weight is None:
                weight = _solved(self.gram.clone(), wanted, damping)
            if weight is None:  # rounding has made the products indefinite, by less than other methods notice
                ridged = self.gram + damping * torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
                weight = torch.linalg.solve(ridged, wanted).T
            weight = weight if present is None else present[0] + weight
            return weight, self.target - weight @ self.mean

        return solve

    def errors(self, weights: Weights) -> Tensor:
        """(1,) the sum of squares that these weights leave."""
        weight, intercept = weights
        offset = weight @ self.mean + intercept - self.target
        left = self.total - 2 * (weight * self.cross.T).sum() + (weight @ self.gram * weight).sum()
        return (left.clamp(min=0) + self.count * offset.square().sum())[None]


def _solved(gram: Tensor, wanted: Tensor, damping: Tensor) -> Tensor | None:
    """(outputs, width) in double precision, solved in that of the products, which are changed; None where it fails."""
    gram.diagonal().add_(damping)
    root, failed = torch.linalg.cholesky_ex(gram)
    return None if failed else torch.cholesky_solve(wanted, root).T.double()


@dataclass(frozen=True)
class FewRows:
    """The same problem as its rows, where these are fewer than the layer's inputs (kernel ridge regression)."""

    inputs: Tensor  # (rows, width)
    targets: Tensor  # (rows, outputs)
    intercept: bool

    @property
    def total(self) -> Tensor:
        """Sum of squares of the targets, about their mean if there is an intercept."""
        return self._centred(self.targets)[1].square().sum()

    def merge(self, other: "FewRows") -> "FewRows":
        """The problem over the rows of both."""
        inputs, targets = torch.cat([self.inputs, other.inputs]), torch.cat([self.targets, other.targets])
        return FewRows(inputs, targets, self.intercept)

    def products(self) -> Products:
        """The same problem as sums of products.

        The products are computed in the rows' own precision and only their results in float64. That takes half the time
        of float64 throughout, and its relative error, near 1e-6, is far below the ridge of a fit.
        """
        (mean, inputs), (target, targets) = (self._centred(rows) for rows in (self.inputs, self.targets))
        products, cross = gram(inputs.T).double(), (inputs.T @ targets).double()
        total = targets.square().sum(dtype=torch.float64)
        return Products(len(inputs), mean.double(), target.double(), products, cross, total)

    @cached_property
    def _kernel(self) -> Tensor:
        """(rows, rows) products of inputs about their mean, in the rows' precision as in `products`; few in double."""
        kernel = gram(self._centred(self.inputs)[1])
        return kernel if len(kernel) >= WIDE else kernel.double()

    def _missing(self, present: Weights) -> Tensor:
        """(rows, outputs) by how much the present weights, without an intercept, miss the targets."""
        return self.targets.double() - self.inputs.double() @ present[0].T

    def solver(self, present: Weights) -> Solve:
        """As of `Products`."""
        change_of = self._changing(self._kernel, self._missing(present))
        mean, inputs = self._centred(self.inputs.double())
        target = self._mean(self.targets.double())

        def solve(ridge: float) -> Weights:
            weight = present[0] + change_of(ridge).T @ inputs
            return weight, target - weight @ mean

        return solve

    def _changing(self, kernel: Tensor, missing: Tensor) -> Callable[[float], Tensor]:
        """Ridge -> (rows, outputs) coefficients of rows, whose sum is the change of the weights; they add up to 0."""
        kernel, missing = self._about_mean(self._about_mean(kernel).T), self._about_mean(missing)
        variance = kernel.trace() / self.inputs.shape[1]

        def change(ridge: float) -> Tensor:
            ridged = kernel.to(kernel.dtype if ridge >= SINGLE else torch.float64, copy=True)
            ridged.diagonal().add_(ridge * variance + 1e-12)
            root, failed = torch.linalg.cholesky_ex(ridged)
            wanted = missing.to(ridged)
            return (torch.linalg.solve(ridged, wanted) if failed else torch.cholesky_solve(wanted, root)).double()

        return change

    def in_turn(self, present: Weights) -> Errors:
        """(rows,) squares that weights leave of every row, fitted to the rows without those next to it.

        Every `SHARE`-th of the rows, next to each other, is held out of the others.
        """
        missing, kernel = self._missing(present), self._kernel
        rows = torch.arange(len(missing), device=missing.device)
        folds = [(rows[(rows < part[0]) | (rows > part[-1])], part) for part in rows.tensor_split(SHARE)]

        def errors(ridge: float | None) -> Tensor:
            if ridge is None:
                return (missing - present[1]).square().sum(1)
            left = []
            for others, part in folds:
                inside = kernel[others][:, others]
                change = self._changing(inside, missing[others])(ridge)
                products = kernel[part][:, others] - self._mean(inside)
                left.append(missing[part] - self._mean(missing[others]) - products @ change.to(products))
            return torch.cat(left).square().sum(1)

        return errors

    def errors(self, weights: Weights) -> Tensor:
        """(rows,) the squares that these weights leave of every row."""
        return (self.inputs.double() @ weights[0].T + weights[1] - self.targets.double()).square().sum(1)

    def _mean(self, rows: Tensor) -> Tensor:
        """The mean of rows, zero for a fit through the origin."""
        return rows.mean(0) if self.intercept else torch.zeros_like(rows[0])

    def _about_mean(self, rows: Tensor) -> Tensor:
        return rows - self._mean(rows)

    def _centred(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._mean(rows)
        return mean, rows - mean


Problem = Products | FewRows
