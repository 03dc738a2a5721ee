"""Plain convolutional networks (Simonyan and Zisserman, 2015), with BatchNorm."""

from collections.abc import Sequence

from torch import Tensor, nn


class VGG(nn.Module):
    """3x3 convolutions, each with BatchNorm and ReLU, in stages that end in a 2x2 maximum; then a hidden layer.

    Takes (N, in_channels, H, W) images, returns (N, classes) logits. `widths` and `depths` give each stage's channels
    and convolutions; `hidden` the units of the hidden layer.

    >>> import torch
    >>> VGG(widths=(8, 16), depths=(1, 2), hidden=12)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        hidden: int = 512,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width, depth in zip(widths, depths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(in_channels * 4, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))
