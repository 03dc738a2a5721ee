"""Convolutional networks without shortcuts, maxima and hidden layers."""

from collections.abc import Sequence

from torch import Tensor, nn


class PlainCNN(nn.Module):
    """3x3 convolutions, each with BatchNorm and ReLU; the first one of every stage but the first has stride 2.

    Takes (N, in_channels, H, W) images, returns (N, classes) logits of the mean over positions. `widths` and `depths`
    give each stage's channels and convolutions.

    >>> import torch
    >>> PlainCNN(widths=(8, 16), depths=(1, 2))(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        depths: Sequence[int] = (3, 3, 3),
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                layers += [nn.Conv2d(in_channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.features(x)).flatten(1))
