"""Layers that multiply their input with a weight: the weight as a matrix, inputs and outputs as its columns."""

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.core.moments import Moments, gram
from simprune.core.spaced import spaced

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | Transposed
PLAIN = tuple(kind.forward for kind in (nn.Linear, *get_args(Convolution)))
STACKED = 2**24  # entries of several weights up to which they are stacked, and read once for all
FEW = 8  # positions of an input up to which several weights are multiplied with them one by one


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a linear layer whose weight is stored as (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_multiplied(module: nn.Module) -> bool:
    """Whether a convolution makes several outputs of every input, and each of one input alone.

    These are depthwise convolutions with a multiplier, as in EEGNet and FastViT. Transposed ones are left out.

    >>> is_multiplied(nn.Conv2d(4, 8, 3, groups=4)), is_multiplied(nn.Conv2d(4, 4, 3, groups=4))
    (True, False)
    """
    plain = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return plain and module.groups == module.in_channels > 1 and module.out_channels > module.in_channels


def can_be_fitted(layer: nn.Module) -> bool:
    """Whether the layer is one matrix product: linear, transformers' Conv1D, or a convolution without groups.

    Convolutions over one, two and three dimensions are, also transposed ones. Subclasses with a forward pass of their
    own, as with standardised weights, compute something else and are not, unless it is the product all the same.

    >>> can_be_fitted(nn.Conv2d(4, 4, 3)), can_be_fitted(nn.Conv2d(4, 4, 3, groups=2))
    (True, False)
    """
    if "bias" in vars(layer):  # a mask computes it
        return False
    if type(layer).forward not in PLAIN or "weight" not in layer._parameters:
        return is_conv1d(layer) or (isinstance(layer, nn.Linear) and _is_product(layer))
    return layer.groups == 1 if isinstance(layer, Convolution) else True


@torch.no_grad()
def _is_product(layer: nn.Linear) -> bool:
    """Whether a subclass of nn.Linear, such as FalconLinear of transformers, multiplies by its weight on two rows."""
    weight = layer._parameters.get("weight")
    if weight is None or not weight.is_floating_point() or weight.shape != (layer.out_features, layer.in_features):
        return False
    x = torch.linspace(-1, 1, 2 * layer.in_features, device=weight.device).view(2, -1).sin().to(weight.dtype)
    try:
        output = layer.forward(x)
    except Exception:  # a foreign forward pass may raise anything; such a layer is no product of rows
        return False
    expected = F.linear(x, weight, layer.bias)
    slack = 4 * torch.finfo(weight.dtype).eps * weight.shape[1] ** 0.5 * float(expected.abs().max())
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    return bool((output - expected).abs().max() <= slack)


def matrix_of(layer: nn.Module, weight: Tensor | None = None) -> Tensor:
    """A layer's weight, or another tensor of its shape, as (outputs, inputs x kernel)."""
    weight = layer.get_parameter("weight").detach() if weight is None else weight
    return weight.transpose(0, 1).flatten(1) if output_dim(layer) else weight.flatten(1)


def weight_of(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix in the shape and type of the layer's weight: the inverse of `matrix_of`."""
    weight = layer.get_parameter("weight")
    inputs_first = weight.transpose(0, 1) if output_dim(layer) else weight
    matrix = matrix.reshape(inputs_first.shape)
    return (matrix.transpose(0, 1) if output_dim(layer) else matrix).to(weight)


def taps(layer: nn.Module) -> int:
    """Number of kernel entries per input channel; 1 for a linear layer."""
    return layer.get_parameter("weight")[0, 0].numel() if isinstance(layer, Convolution) else 1


def output_dim(layer: nn.Module) -> int:
    """The dimension of the weight along which the outputs lie."""
    return 1 if is_conv1d(layer) or isinstance(layer, Transposed) else 0


def channel_dim(layer: nn.Module) -> int:
    """The dimension of the output along which the channels lie."""
    return 1 if isinstance(layer, Convolution) else -1


def patches(layer: nn.Module, x: Tensor, output: Tensor | None = None) -> Tensor:
    """(N, inputs x kernel, positions) of a layer's input: one column for every position of the output.

    `matrix_of(layer) @ patches(layer, x)` is the output without bias. A linear layer has N = 1 and one position per row
    of its input. Channel groups of a convolution are ignored.

    Args:
        layer: as `can_be_fitted` accepts.
        x: its input.
        output: a tensor of its output's size, which the caller of a transposed convolution may choose.
    """
    if not isinstance(layer, Convolution):
        return x.flatten(0, -2).T.unsqueeze(0)
    if isinstance(layer, Transposed):
        ones = [1] * len(layer.kernel_size)
        return _windows(_spread_out(layer, x, output), layer.kernel_size, layer.dilation, ones).flip(2).flatten(1, 2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    if x.ndim == 5:
        return _windows(x, layer.kernel_size, layer.dilation, layer.stride).flatten(1, 2)
    if x.ndim == 3:  # as an image of height one
        x = x.unsqueeze(2)
    kernel, dilation, stride = ((1, *values)[-2:] for values in (layer.kernel_size, layer.dilation, layer.stride))
    return F.unfold(x, kernel, dilation, 0, stride)


def pairs_of(layer: nn.Module, x: Tensor, output: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Patches and `positions` of a layer's input and output, (N, width, positions) each.

    Args:
        layer: as `can_be_fitted` accepts.
        x: its input.
        output: a tensor of its output's shape.
        most: number of positions of a map, where it has at least twice as many; None for all.

    >>> layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 20, 20)
    >>> [tuple(part.shape) for part in pairs_of(layer, x, layer(x), 64)]
    [(2, 27, 64), (2, 4, 64)]
    """
    values = positions(layer, output)
    maps = isinstance(layer, Convolution) and not isinstance(layer, Transposed)
    at = spaced(values.shape[2], most) if maps and most is not None else None
    if at is None or most is None:
        return patches(layer, x, output), values
    return some_patches(layer, x, output, most), values[..., at.to(values.device)]


def some_patches(layer: nn.Module, x: Tensor, output: Tensor, most: int) -> Tensor:
    """(N, inputs x kernel, positions) as `patches`, with N inputs also for a linear layer, at some of the positions.

    Args:
        layer: as `can_be_fitted` accepts.
        x: its input, (N, ...).
        output: a tensor of its output's size.
        most: number of positions per input, where there are at least twice as many (see `simprune.core.spaced`).

    >>> layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 20, 20)
    >>> some_patches(layer, x, layer(x), 64).shape, some_patches(layer, x, layer(x), 300).shape
    (torch.Size([2, 27, 64]), torch.Size([2, 27, 400]))
    """
    if not isinstance(layer, Convolution):
        columns = _columns(x)
        at = spaced(columns.shape[2], most)
        return columns if at is None else columns[..., at.to(x.device)]
    sizes = output.shape[2:]
    at = None if isinstance(layer, Transposed) else spaced(sizes.numel(), most)
    if at is None:
        return patches(layer, x, output)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode) if any(layer._reversed_padding_repeated_twice) else x
    for dim, (taps, apart, step) in enumerate(zip(layer.kernel_size, layer.dilation, layer.stride, strict=True), 2):
        x = x.unfold(dim, apart * (taps - 1) + 1, step)[..., ::apart]
    at = at.to(x.device)
    return x[(slice(None), slice(None), *torch.unravel_index(at, sizes))].movedim(2, -1).flatten(1, -2)


def _spread_out(layer: nn.Module, x: Tensor, output: Tensor | None) -> Tensor:
    """The input of a transposed convolution, on which the plain convolution with its kernel reversed gives its output.

    Between the entries stand `stride` - 1 zeros, and as many around them as the kernel reaches beyond the padding.
    """
    assert isinstance(layer, Transposed)
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], layer.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    spread[(..., *(slice(None, None, step) for step in layer.stride))] = x
    margins: list[int] = []  # before and after every dimension, the last one first; what is below 0 is cut off
    for dim in reversed(range(len(layer.stride))):
        span = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
        reach, more = span - int(layer.padding[dim]), layer.output_padding[dim]
        if output is not None:
            more = output.shape[2 + dim] - (sizes[dim] + 2 * reach - span)
        margins += [reach, reach + more]
    return F.pad(spread, margins)


def _windows(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]) -> Tensor:
    """(N, channels, taps, positions): what a kernel sees of (N, channels, *sizes) where it stands."""
    dims = len(kernel)
    for dim, (taps, apart, step) in enumerate(zip(kernel, dilation, stride, strict=True), 2):
        x = x.unfold(dim, apart * (taps - 1) + 1, step)[..., ::apart]
    order = (0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
    return x.permute(order).flatten(2 + dims).flatten(2, 1 + dims)


def changes_by_weights(
    layer: nn.Module, x: Tensor, gradient: Tensor, weights: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """(N,) sums of the gradient times what the layer would give with other weights, input by input.

    The product of an input's gradients and patches is the same for all weights.

    Args:
        layer: as `can_be_fitted` accepts.
        x: its input, (N, ...).
        gradient: at its output.
        weights: (outputs, inputs x kernel) and (outputs,) bias, any number of them.

    >>> layer, x = nn.Linear(3, 2), torch.randn(4, 30, 3)
    >>> gradient, weights = torch.randn(4, 30, 2), (layer.weight.detach(), layer.bias.detach())
    >>> [change] = changes_by_weights(layer, x, gradient, [weights])
    >>> torch.allclose(change, (gradient * layer(x)).sum((1, 2)).double(), rtol=1e-4)
    True
    """
    changes = [torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in weights]
    if not weights:
        return changes
    full = [(in_full(matrix), in_full(bias)) for matrix, bias in weights]
    entries = sum(matrix.numel() for matrix, _ in full)
    rows = torch.stack([matrix.flatten() for matrix, _ in full]) if entries <= STACKED else None
    for number in range(len(x)):
        row = slice(number, number + 1)
        columns = in_full(some_patches(layer, x[row], gradient[row], gradient.numel()))[0]
        slopes = positions(layer, gradient[row]) if isinstance(layer, Convolution) else _columns(gradient[row])
        slopes = in_full(slopes)[0]
        if columns.shape[1] <= FEW:
            parts = [((matrix @ columns + bias[:, None]) * slopes).sum() for matrix, bias in full]
        else:
            product, total = (slopes @ columns.T).flatten(), slopes.sum(1)
            dots = [product @ matrix.flatten() for matrix, _ in full] if rows is None else rows @ product
            parts = [dot + total @ bias for dot, (_, bias) in zip(dots, full, strict=True)]
        for change, part in zip(changes, parts, strict=True):
            change[number] = part
    return changes


def _columns(value: Tensor) -> Tensor:
    """(N, width, positions) of tokens (N, ..., width)."""
    return value.unsqueeze(1).flatten(1, -2).mT


def positions(layer: nn.Module, output: Tensor) -> Tensor:
    """A layer's output as (N, channels, positions), with N and positions as in `patches`."""
    return output.flatten(2) if isinstance(layer, Convolution) else output.flatten(0, -2).T.unsqueeze(0)


def stacked(*parts: Tensor) -> Tensor:
    """Tensors (N, width, positions) one below the other as (sum of widths, N x positions)."""
    return torch.cat([part.transpose(0, 1).flatten(1) for part in parts])


def in_full(values: Tensor) -> Tensor:
    """Values in single precision at least: sums over halves would lose digits, or overflow."""
    return values.float() if values.dtype.itemsize < 4 else values


def joint_moments(*parts: Tensor) -> Moments:
    """Moments of tensors (N, width, positions) side by side, with one row per input and position.

    The product is computed in the tensors' own precision and only its result in float64. That takes half the time of
    float64 throughout, and its relative error, near 1e-6, is far below the ridge of a fit.
    """
    rows = stacked(*map(in_full, parts))
    count = rows.shape[1]
    mean = rows.mean(1)
    rows -= mean[:, None]
    return Moments(count, mean.double(), gram(rows).double())
