"""Ridge regression of one layer in closed form: the weights that turn its inputs into target outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simprune.core.moments import Moments
from simprune.trace.layers import joint_moments, matrix_of, patches, positions, stacked

Ridge = float | Literal["auto"]
RIDGES = (1e-3, 1e-5, 1e-4, 1e-2, 1e-1, 1.0)  # the first where nothing can be held out


@dataclass(frozen=True)
class Fit:
    """Weights and intercept, with the relative squared error of the outputs before and after, and the ridge used."""

    matrix: Tensor
    intercept: Tensor
    before: float
    after: float
    ridge: float


def fit(layer: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], ridge: Ridge, intercept: bool = True) -> Fit:
    """Ridge regression of target outputs on a layer's inputs.

    With width = inputs x kernel and one row per position, memory O(width x min(width, rows)): products of inputs are
    summed up, or rows compared where there are fewer rows.

    Args:
        layer: a linear layer or convolution, as `simprune.trace.layers.can_be_fitted` accepts; it is not changed.
        pairs: (input, target output) of the layer, one pair per batch.
        ridge: relative to the mean variance of the inputs; "auto" takes the one of `RIDGES` with which the first eighth
            of every batch is predicted best from the rest (`RIDGES[0]` when batches are too small), and then fits to
            all rows.
        intercept: False for a fit through the origin, of a layer without bias.

    Returns:
        The weights as a matrix (outputs, inputs x kernel), the intercept (outputs,), both in float64, and the errors.

    >>> layer, x = nn.Linear(3, 2), torch.randn(64, 3)
    >>> fit(layer, [(x, layer(x).detach())], 1e-9).after < 1e-6
    True
    """
    old, bias = matrix_of(layer).double(), getattr(layer, "bias", None)
    count = sum(targets.numel() // len(old) for _, targets in pairs)
    problem = FewRows if count < old.shape[1] else Products
    problems: list[Any] = [None, None]  # over the rows that are held out, and over all others
    for x, targets in pairs:
        held = len(x) // 8 if ridge == "auto" and len(x) == len(targets) else 0
        for index, rows in enumerate((slice(0, held), slice(held, None))):
            if len(x[rows]):
                part = problem.of(patches(layer, x[rows]), positions(layer, targets[rows]), intercept)
                problems[index] = part if problems[index] is None else problems[index].merge(part)
    judging, fitting = problems
    if ridge == "auto":
        ridge = RIDGES[0] if judging is None else min(RIDGES, key=lambda value: judging.error(*fitting.solve(value)))
    whole = fitting if judging is None else fitting.merge(judging)
    weight, offset = whole.solve(ridge)
    spread = whole.total.clamp(min=1e-30)
    before = whole.error(old, torch.zeros_like(old[:, 0]) if bias is None else bias.detach().double())
    return Fit(weight, offset, float(before / spread), float(whole.error(weight, offset) / spread), ridge)


@dataclass(frozen=True)
class Products:
    """Least squares over some rows, as moments of inputs and targets side by side; the first `width` are the inputs."""

    moments: Moments
    width: int
    intercept: bool

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, intercept: bool) -> "Products":
        """The problem over the positions of inputs (N, width, positions) and targets (N, outputs, positions)."""
        return cls(joint_moments(inputs, targets), inputs.shape[1], intercept)

    @cached_property
    def about(self) -> Moments:
        """Moments about the mean if there is an intercept, otherwise about the origin."""
        return self.moments if self.intercept else self.moments.about_origin()

    @property
    def gram(self) -> Tensor:
        """(width, width) products of inputs."""
        return self.about.scatter[: self.width, : self.width]

    @property
    def cross(self) -> Tensor:
        """(width, outputs) products of inputs and targets."""
        return self.about.scatter[: self.width, self.width :]

    @property
    def total(self) -> Tensor:
        """Sum of squares of the target outputs, about their mean if there is an intercept."""
        return self.about.scatter[self.width :, self.width :].diagonal().sum()

    def merge(self, other: "Products") -> "Products":
        """The problem over the rows of both."""
        return replace(self, moments=self.moments.merge(other.moments))

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (outputs, width) and intercept (outputs,)."""
        damping = ridge * self.gram.diagonal().mean() + 1e-12
        ridged = self.gram + damping * torch.eye(self.width, dtype=self.gram.dtype, device=self.gram.device)
        weight = torch.linalg.solve(ridged, self.cross).T
        mean = self.about.mean
        return weight, mean[self.width :] - weight @ mean[: self.width]

    def error(self, weight: Tensor, intercept: Tensor) -> Tensor:
        """Sum of squares that these weights leave."""
        mean = self.about.mean
        offset = weight @ mean[: self.width] + intercept - mean[self.width :]
        left = self.total - 2 * (weight * self.cross.T).sum() + (weight @ self.gram * weight).sum()
        return left.clamp(min=0) + self.moments.count * offset.square().sum()


@dataclass(frozen=True)
class FewRows:
    """The same problem as its rows, where these are fewer than the layer's inputs (kernel ridge regression)."""

    inputs: Tensor  # (rows, width)
    targets: Tensor  # (rows, outputs)
    intercept: bool

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, intercept: bool) -> "FewRows":
        """As of `Products`."""
        return cls(stacked(inputs).T.double(), stacked(targets).T.double(), intercept)

    @property
    def total(self) -> Tensor:
        """Sum of squares of the target outputs, about their mean if there is an intercept."""
        return self._centred(self.targets)[1].square().sum()

    def merge(self, other: "FewRows") -> "FewRows":
        """The problem over the rows of both."""
        inputs, targets = torch.cat([self.inputs, other.inputs]), torch.cat([self.targets, other.targets])
        return FewRows(inputs, targets, self.intercept)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (outputs, width) and intercept (outputs,)."""
        (mean, inputs), (target, targets) = self._centred(self.inputs), self._centred(self.targets)
        kernel = inputs @ inputs.T
        kernel.diagonal().add_(ridge * kernel.trace() / inputs.shape[1] + 1e-12)
        weight = torch.linalg.solve(kernel, targets).T @ inputs
        return weight, target - weight @ mean

    def error(self, weight: Tensor, intercept: Tensor) -> Tensor:
        """Sum of squares that these weights leave."""
        return (self.inputs @ weight.T + intercept - self.targets).square().sum()

    def _centred(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What is subtracted, and the rows without it."""
        mean = rows.mean(0) if self.intercept else torch.zeros_like(rows[0])
        return mean, rows - mean
