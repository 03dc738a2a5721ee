"""Convolutional networks in the manner of transformers (Liu et al., "A ConvNet for the 2020s", 2022)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W) maps."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, an MLP on every pixel, scaled by a learnt factor per channel, around a shortcut."""

    def __init__(self, width: int, expansion: int, scale: float):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.gamma = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A patch stem, stages of blocks with a LayerNorm and a strided convolution between them.

    Takes (N, in_channels, H, W) images, returns (N, classes) logits. `widths` and `depths` give each stage's channels
    and blocks; `patch` the stem's kernel and stride; `scale` the layer scale at the start.

    >>> import torch
    >>> ConvNeXt(widths=(4, 8), depths=(1, 1), patch=2, expansion=2)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (40, 80, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        patch: int = 2,
        expansion: int = 4,
        scale: float = 1.0,
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], patch, patch), ChannelNorm(widths[0])]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                layers += [ChannelNorm(widths[stage - 1]), nn.Conv2d(widths[stage - 1], width, 2, 2)]
            layers += [Block(width, expansion, scale) for _ in range(depth)]
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1])
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.features(x).mean((2, 3))))
