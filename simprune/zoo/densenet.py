"""Densely connected networks (Huang et al., "Densely Connected Convolutional Networks", 2017)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution; its `growth` new channels are put beside its input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class Transition(nn.Module):
    """Halve the channels and the resolution."""

    def __init__(self, inputs: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Stages of dense layers with transitions between them.

    Takes (N, in_channels, H, W) images, returns (N, classes) logits. `depths` gives each stage's layers; `stem` the
    channels that the first one starts from.

    >>> import torch
    >>> DenseNet(depths=(2, 2), growth=4, stem=6)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        depths: Sequence[int] = (12, 12, 12),
        growth: int = 12,
        stem: int = 24,
    ):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        width = stem
        for stage, depth in enumerate(depths):
            if stage:
                layers.append(Transition(width))
                width //= 2
            for _ in range(depth):
                layers.append(DenseLayer(width, growth))
                width += growth
        self.features = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.bn(self.features(self.stem(x)))).mean((2, 3)))
