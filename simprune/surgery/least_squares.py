"""Fit one layer in closed form: the weights with which its inputs give wanted outputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.moments import Moments

Refittable = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Fit:
    """Weights and intercept, with the relative squared error of the outputs before and after."""

    weight: Tensor
    intercept: Tensor
    before: float
    after: float


def fit(layer: Refittable, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> Fit:
    """Ridge regression of wanted outputs on a layer's inputs, over batches of (input, wanted output).

    `ridge` is relative to the mean variance of the inputs. Memory O((inputs x kernel)^2), whatever the number of rows.
    """
    width = layer.weight[0].numel()
    moments: Moments | None = None
    for x, wanted in pairs:
        found = joint_moments(patches(layer, x), positions(layer, wanted))
        moments = found if moments is None else moments.merge(found)
    assert moments is not None
    gram, cross = moments.scatter[:width, :width], moments.scatter[:width, width:]
    total = moments.scatter[width:, width:].diagonal().sum()
    old = layer.weight.flatten(1).double()
    bias = torch.zeros_like(old[:, 0]) if layer.bias is None else layer.bias.double()
    offset = old @ moments.mean[:width] + bias - moments.mean[width:]
    damping = ridge * gram.diagonal().mean() + 1e-12
    ridged = gram + damping * torch.eye(width, dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(ridged, cross).T
    spread = total.clamp(min=1e-30)
    return Fit(
        weight.reshape(layer.weight.shape),
        moments.mean[width:] - weight @ moments.mean[:width],
        before=float((_left(total, old, gram, cross) + moments.count * offset.square().sum()) / spread),
        after=float(_left(total, weight, gram, cross) / spread),
    )


def _left(total: Tensor, weight: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """Centred squared error that these weights leave."""
    return (total - 2 * (weight * cross.T).sum() + (weight @ gram * weight).sum()).clamp(min=0)


def patches(layer: Refittable, x: Tensor) -> Tensor:
    """(inputs, inputs x kernel, positions): each column is what one output position is a linear function of.

    Channel groups of a convolution are not told apart.
    """
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).T.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    if isinstance(layer, nn.Conv1d):  # as an image of height one
        x = x.unsqueeze(2)
    kernel, dilation, stride = ((1, *values)[-2:] for values in (layer.kernel_size, layer.dilation, layer.stride))
    return F.unfold(x, kernel, dilation, 0, stride)


def positions(layer: Refittable, output: Tensor) -> Tensor:
    """Output of a layer as (inputs, channels, positions), in the order of `patches`."""
    return output.flatten(0, -2).T.unsqueeze(0) if isinstance(layer, nn.Linear) else output.flatten(2)


def joint_moments(*parts: Tensor) -> Moments:
    """Moments of stacked (inputs, width, positions) tensors, one row per input and position.

    Products run in the tensors' own precision and are summed in float64: half the time of float64 throughout, at a
    relative error near 1e-6, far below the ridge.
    """
    rows = parts[0].shape[0] * parts[0].shape[2]
    mean = torch.cat([part.sum((0, 2), dtype=torch.float64) for part in parts]) / rows
    blocks = [
        [(a @ b.transpose(1, 2)).sum(0, dtype=torch.float64) for b in parts[: i + 1]] for i, a in enumerate(parts)
    ]
    second = torch.cat([torch.cat([_block(blocks, i, j) for j in range(len(parts))], 1) for i in range(len(parts))])
    return Moments(rows, mean, second - rows * torch.outer(mean, mean))


def _block(blocks: list[list[Tensor]], i: int, j: int) -> Tensor:
    return blocks[i][j] if j <= i else blocks[j][i].T
