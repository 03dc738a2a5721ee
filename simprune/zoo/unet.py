"""Encoder and decoder with skip connections by concatenation (Ronneberger et al., "U-Net", 2015)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pair(nn.Module):
    """Two 3x3 convolutions with GroupNorm and ReLU."""

    def __init__(self, inputs: int, width: int, groups: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class UNet(nn.Module):
    """A pair of convolutions per resolution on the way down, and again, joined with the first, on the way up.

    Takes (N, in_channels, H, W) images with sides divisible by 2^(levels - 1), returns (N, classes, H, W) logits.
    `widths`: channels of each level; `groups`: of the GroupNorms.

    >>> import torch
    >>> UNet(widths=(4, 8), classes=2, groups=2)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 2, 8, 8])
    """

    def __init__(self, in_channels: int = 3, classes: int = 2, widths: Sequence[int] = (32, 64, 128), groups: int = 4):
        super().__init__()
        inputs = [in_channels, *widths]
        self.down = nn.ModuleList(Pair(i, width, groups) for i, width in zip(inputs[:-1], widths, strict=True))
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Pair(2 * width, width, groups) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for raise_, pair, skip in zip(reversed(self.raise_), reversed(self.up), reversed(skips[:-1]), strict=True):
            x = pair(torch.cat([skip, raise_(x)], 1))
        return self.head(x)
