"""Fit one layer in closed form: the weights with which its inputs give wanted outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.moments import Moments

Ridge = float | Literal["auto"]
PLAIN = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward)
RIDGES = (1e-3, 1e-5, 1e-4, 1e-2, 1e-1, 1.0)  # the first where nothing can be held out


def can_be_fitted(layer: nn.Module) -> bool:
    """Is the layer one product with its weight: linear, transformers' Conv1D, or a convolution without groups?

    Not a subclass that computes something else, as with standardised weights or a padding of its own.

    >>> can_be_fitted(nn.Conv2d(4, 4, 3)), can_be_fitted(nn.Conv2d(4, 4, 3, groups=2))
    (True, False)
    """
    if type(layer).forward not in PLAIN or "weight" not in layer._parameters:
        return _is_transposed_linear(layer)
    return layer.groups == 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else True


def _is_transposed_linear(layer: nn.Module) -> bool:
    """transformers' Conv1D: a linear layer whose weight is (inputs, outputs); told by name, as it is optional."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv1d | nn.Conv2d)


def matrix_of(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """A layer's weight, or another tensor of its shape, as (outputs, inputs x kernel)."""
    weight = layer.get_parameter("weight").detach() if weight is None else weight
    return weight.T if _is_transposed_linear(layer) else weight.flatten(1)


def weight_of(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix in the shape and type of the layer's weight: the inverse of `matrix_of`."""
    weight = layer.get_parameter("weight")
    return (matrix.T if _is_transposed_linear(layer) else matrix).reshape(weight.shape).to(weight)


def taps(layer: nn.Module) -> int:
    """Kernel entries per input channel."""
    return layer.get_parameter("weight")[0, 0].numel() if _is_convolution(layer) else 1


def output_dim(layer: nn.Module) -> int:
    """Which dimension of the weight counts outputs."""
    return 1 if _is_transposed_linear(layer) else 0


def channel_dim(layer: nn.Module) -> int:
    """Where a layer's output has its channels."""
    return 1 if _is_convolution(layer) else -1


@dataclass(frozen=True)
class Fit:
    """Weights and intercept, with the relative squared error of the outputs before and after."""

    matrix: Tensor
    intercept: Tensor
    before: float
    after: float
    ridge: float

    def write(self, layer: nn.Module) -> None:
        """Put the weights, and the intercept where there is a bias, into a layer."""
        with torch.no_grad():
            layer.get_parameter("weight").copy_(weight_of(layer, self.matrix))
            if getattr(layer, "bias", None) is not None:
                layer.get_parameter("bias").copy_(self.intercept)


def fit(layer: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], ridge: Ridge, intercept: bool = True) -> Fit:
    """Ridge regression of wanted outputs on a layer's inputs, over batches of (input, wanted output).

    `ridge` is relative to the mean variance of the inputs; "auto" takes the one of `RIDGES` with which the first eighth
    of each batch is predicted best from the rest (`RIDGES[0]` when batches are too small), and then fits to all.
    Without `intercept` the fit goes through the origin, and the layer has no bias. With width = inputs x kernel and one
    row per position, memory O(width x min(width, rows)): products of inputs are summed up, or rows compared where there
    are fewer rows.
    """
    old, bias = matrix_of(layer).double(), getattr(layer, "bias", None)
    count = sum(wanted.numel() // len(old) for _, wanted in pairs)
    problem = _Rows if count < old.shape[1] else _Products
    seen: list[_Problem | None] = [None, None]  # held out, and the rest
    for x, wanted in pairs:
        held = len(x) // 8 if ridge == "auto" and len(x) == len(wanted) else 0
        for place, rows in enumerate((slice(0, held), slice(held, None))):
            if len(x[rows]):
                found = problem.of(patches(layer, x[rows]), positions(layer, wanted[rows]), intercept)
                known = seen[place]
                seen[place] = found if known is None else known.merge(found)
    judging, fitting = seen
    assert fitting is not None
    if ridge == "auto":
        ridge = RIDGES[0] if judging is None else min(RIDGES, key=lambda each: judging.error(*fitting.solve(each)))
    whole = fitting if judging is None else fitting.merge(judging)
    weight, offset = whole.solve(ridge)
    spread = whole.total.clamp(min=1e-30)
    before = whole.error(old, torch.zeros_like(old[:, 0]) if bias is None else bias.detach().double())
    return Fit(weight, offset, float(before / spread), float(whole.error(weight, offset) / spread), ridge)


class _Problem(Protocol):
    """Least squares over some rows."""

    @property
    def total(self) -> Tensor:
        """Sum of squares of the wanted outputs, about their mean if there is an intercept."""
        ...

    def merge(self, other: Any) -> "_Problem":
        """The problem over the rows of both."""
        ...

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights and intercept."""
        ...

    def error(self, weight: Tensor, intercept: Tensor) -> Tensor:
        """Sum of squares that these weights leave."""
        ...


@dataclass(frozen=True)
class _Products:
    """As sums over rows: inputs, wanted outputs, and their products."""

    moments: Moments
    width: int
    intercept: bool

    @classmethod
    def of(cls, inputs: Tensor, wanted: Tensor, intercept: bool) -> "_Products":
        return cls(joint_moments(inputs, wanted), inputs.shape[1], intercept)

    @cached_property
    def about(self) -> Moments:
        return self.moments if self.intercept else self.moments.about_origin()

    @property
    def gram(self) -> Tensor:
        return self.about.scatter[: self.width, : self.width]

    @property
    def cross(self) -> Tensor:
        return self.about.scatter[: self.width, self.width :]

    @property
    def total(self) -> Tensor:
        return self.about.scatter[self.width :, self.width :].diagonal().sum()

    def merge(self, other: "_Products") -> "_Products":
        return _Products(self.moments.merge(other.moments), self.width, self.intercept)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        damping = ridge * self.gram.diagonal().mean() + 1e-12
        ridged = self.gram + damping * torch.eye(self.width, dtype=self.gram.dtype, device=self.gram.device)
        weight = torch.linalg.solve(ridged, self.cross).T
        mean = self.about.mean
        return weight, mean[self.width :] - weight @ mean[: self.width]

    def error(self, weight: Tensor, intercept: Tensor) -> Tensor:
        mean = self.about.mean
        offset = weight @ mean[: self.width] + intercept - mean[self.width :]
        left = self.total - 2 * (weight * self.cross.T).sum() + (weight @ self.gram * weight).sum()
        return left.clamp(min=0) + self.moments.count * offset.square().sum()


@dataclass(frozen=True)
class _Rows:
    """As rows, of which there are fewer than inputs: the weights are sums of rows (kernel ridge regression)."""

    inputs: Tensor  # (rows, width)
    wanted: Tensor  # (rows, outputs)
    intercept: bool

    @classmethod
    def of(cls, inputs: Tensor, wanted: Tensor, intercept: bool) -> "_Rows":
        return cls(stacked(inputs).T.double(), stacked(wanted).T.double(), intercept)

    @property
    def total(self) -> Tensor:
        return self._centred(self.wanted)[1].square().sum()

    def merge(self, other: "_Rows") -> "_Rows":
        return _Rows(torch.cat([self.inputs, other.inputs]), torch.cat([self.wanted, other.wanted]), self.intercept)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        (mean, inputs), (target, wanted) = self._centred(self.inputs), self._centred(self.wanted)
        kernel = inputs @ inputs.T
        kernel.diagonal().add_(ridge * kernel.trace() / inputs.shape[1] + 1e-12)
        weight = torch.linalg.solve(kernel, wanted).T @ inputs
        return weight, target - weight @ mean

    def error(self, weight: Tensor, intercept: Tensor) -> Tensor:
        return (self.inputs @ weight.T + intercept - self.wanted).square().sum()

    def _centred(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What is subtracted, and the rows without it."""
        mean = rows.mean(0) if self.intercept else torch.zeros_like(rows[0])
        return mean, rows - mean


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """(inputs, inputs x kernel, positions): each column is what one output position is a linear function of.

    Channel groups of a convolution are not told apart.
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return x.flatten(0, -2).T.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    if isinstance(layer, nn.Conv1d):  # as an image of height one
        x = x.unsqueeze(2)
    kernel, dilation, stride = ((1, *values)[-2:] for values in (layer.kernel_size, layer.dilation, layer.stride))
    return F.unfold(x, kernel, dilation, 0, stride)


def positions(layer: nn.Module, output: Tensor) -> Tensor:
    """Output of a layer as (inputs, channels, positions), in the order of `patches`."""
    return output.flatten(2) if _is_convolution(layer) else output.flatten(0, -2).T.unsqueeze(0)


def stacked(*parts: Tensor) -> Tensor:
    """(inputs, width, positions) tensors as (widths, rows), one row per input and position."""
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts])


def joint_moments(*parts: Tensor) -> Moments:
    """Moments of stacked (inputs, width, positions) tensors, one row per input and position.

    The product runs in the tensors' own precision and its sums over batches in float64: half the time of float64
    throughout, at a relative error near 1e-6, far below the ridge.
    """
    rows = stacked(*parts)
    count = rows.shape[1]
    mean = rows.mean(1)
    rows -= mean[:, None]
    return Moments(count, mean.double(), (rows @ rows.T).double())
