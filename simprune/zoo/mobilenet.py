"""Inverted residuals with depthwise convolutions (Sandler et al., "MobileNetV2", 2018)."""

from collections.abc import Sequence

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Widen with a 1x1, filter each channel with a 3x3, narrow with a 1x1; with a shortcut where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *_convolution(inputs, inner, 1),
            nn.ReLU6(),
            *_convolution(inner, inner, 3, stride, groups=inner),
            nn.ReLU6(),
            *_convolution(inner, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    """A stem, stages of inverted residuals that halve the resolution from the second on, a 1x1 head.

    Takes (N, in_channels, H, W) images, returns (N, classes) logits. `widths` and `depths` give each stage's channels
    and blocks; `expansion` how much wider a block is inside; `last` the channels before the classifier.

    >>> import torch
    >>> MobileNet(widths=(4, 6), depths=(1, 2), expansion=2, last=8)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (16, 24, 32, 64, 96),
        depths: Sequence[int] = (1, 2, 3, 4, 3),
        expansion: int = 6,
        last: int = 512,
    ):
        super().__init__()
        layers = [*_convolution(in_channels, widths[0], 3), nn.ReLU6()]
        width = widths[0]
        for stage, (wider, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                layers.append(InvertedResidual(width, wider, 2 if stage and not block else 1, expansion))
                width = wider
        self.features = nn.Sequential(*layers, *_convolution(width, last, 1), nn.ReLU6())
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
