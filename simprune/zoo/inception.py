"""Parallel branches joined by channel (Szegedy et al., "Going Deeper with Convolutions", 2015), with BatchNorm."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Four branches of `width` channels each: 1x1; 3x3; two 3x3; 3x3 average and 1x1."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        half = max(width // 2, 1)
        self.point = Unit(inputs, width, 1)
        self.small = nn.Sequential(Unit(inputs, half, 1), Unit(half, width, 3))
        self.large = nn.Sequential(Unit(inputs, half, 1), Unit(half, width, 3), Unit(width, width, 3))
        self.pooled = Unit(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        average = F.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.point(x), self.small(x), self.large(x), self.pooled(average)], 1)


class Inception(nn.Module):
    """A stem and mixed blocks, the resolution halved before each but the first.

    Takes (N, in_channels, H, W) images, returns (N, classes) logits. `widths`: channels of each block's branches.

    >>> import torch
    >>> Inception(widths=(4, 6), stem=8)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 10, widths: Sequence[int] = (16, 32, 48, 64), stem: int = 32
    ):
        super().__init__()
        self.stem = Unit(in_channels, stem, 3)
        inputs = [stem, *(4 * width for width in widths)]
        self.blocks = nn.ModuleList(Mixed(i, width) for i, width in zip(inputs[:-1], widths, strict=True))
        self.classifier = nn.Linear(inputs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if index else x)
        return self.classifier(x.mean((2, 3)))
