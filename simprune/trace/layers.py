"""Layers that multiply their input with a weight: the weight as a matrix, inputs and outputs as its columns."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.moments import Moments

PLAIN = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a linear layer whose weight is stored as (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def can_be_fitted(layer: nn.Module) -> bool:
    """Whether the layer is one matrix product: linear, transformers' Conv1D, or a convolution without groups.

    Subclasses with a forward pass of their own, as with standardised weights, compute something else and are not.

    >>> can_be_fitted(nn.Conv2d(4, 4, 3)), can_be_fitted(nn.Conv2d(4, 4, 3, groups=2))
    (True, False)
    """
    if type(layer).forward not in PLAIN or "weight" not in layer._parameters:
        return is_conv1d(layer)
    return layer.groups == 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else True


def matrix_of(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """A layer's weight, or another tensor of its shape, as (outputs, inputs x kernel)."""
    weight = layer.get_parameter("weight").detach() if weight is None else weight
    return weight.T if is_conv1d(layer) else weight.flatten(1)


def weight_of(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix in the shape and type of the layer's weight: the inverse of `matrix_of`."""
    weight = layer.get_parameter("weight")
    return (matrix.T if is_conv1d(layer) else matrix).reshape(weight.shape).to(weight)


def taps(layer: nn.Module) -> int:
    """Number of kernel entries per input channel; 1 for a linear layer."""
    return layer.get_parameter("weight")[0, 0].numel() if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1


def output_dim(layer: nn.Module) -> int:
    """The dimension of the weight along which the outputs lie."""
    return 1 if is_conv1d(layer) else 0


def channel_dim(layer: nn.Module) -> int:
    """The dimension of the output along which the channels lie."""
    return 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else -1


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """(N, inputs x kernel, positions) of a layer's input: one column for every position of the output.

    `matrix_of(layer) @ patches(layer, x)` is the output without bias. A linear layer has N = 1 and one position per row
    of its input. Channel groups of a convolution are ignored.
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
    """A layer's output as (N, channels, positions), with N and positions as in `patches`."""
    return output.flatten(2) if isinstance(layer, nn.Conv1d | nn.Conv2d) else output.flatten(0, -2).T.unsqueeze(0)


def stacked(*parts: Tensor) -> Tensor:
    """Tensors (N, width, positions) one below the other as (sum of widths, N x positions)."""
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts])


def joint_moments(*parts: Tensor) -> Moments:
    """Moments of tensors (N, width, positions) side by side, with one row per input and position.

    The product is computed in the tensors' own precision and only its result in float64. That takes half the time of
    float64 throughout, and its relative error, near 1e-6, is far below the ridge of a fit.
    """
    rows = stacked(*parts)
    count = rows.shape[1]
    mean = rows.mean(1)
    rows -= mean[:, None]
    return Moments(count, mean.double(), (rows @ rows.T).double())
