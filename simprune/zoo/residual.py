"""Residual networks for small images (He et al., "Deep Residual Learning for Image Recognition", 2016)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Shortcut "A": every `stride`-th pixel, half the missing channels zero on each side; no parameters."""

    def __init__(self, in_width: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.before = (width - in_width) // 2
        self.after = width - in_width - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, in_width: int, width: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if stride == 1 and in_width == width:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PadShortcut(in_width, width, stride)
        else:
            projection = nn.Conv2d(in_width, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualCNN(nn.Module):
    """Residual network whose stages `layer1`, `layer2`, ... halve the resolution from the second on.

    Takes (N, in_channels, H, W) images, returns (N, classes) logits. `widths` and `depths` give each stage's
    channels and blocks; `shortcut` is what joins two stages: "A" pads with zero channels (no parameters, as
    in the published CIFAR networks), "B" projects with a 1x1 convolution. ValueError for any other shortcut,
    for unequal lengths of `widths` and `depths`, and with "A" for widths that shrink.

    >>> import torch
    >>> ResidualCNN(in_channels=1, widths=(8, 16), depths=(2, 1), shortcut="B")(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        depths: Sequence[int] = (3, 3, 3),
        shortcut: str = "B",
    ):
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut must be "A" (zero padding) or "B" (projection); got {shortcut!r}')
        if len(widths) != len(depths) or min([*widths, *depths], default=0) < 1:
            raise ValueError(
                "widths and depths must hold one positive number per stage; "
                f"got widths {list(widths)} and depths {list(depths)}"
            )
        if shortcut == "A" and list(widths) != sorted(widths):
            raise ValueError(f'shortcut "A" can only add channels; widths {list(widths)} shrink, use "B"')
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        in_width = widths[0]
        for stage, width, depth in zip(self.stages, widths, depths, strict=True):
            first = Block(in_width, width, 1 if stage == "layer1" else 2, shortcut)
            rest = [Block(width, width, 1, shortcut) for _ in range(depth - 1)]
            self.add_module(stage, nn.Sequential(first, *rest))
            in_width = width
        self.linear = nn.Linear(in_width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet20(classes: int = 10) -> ResidualCNN:
    """He et al.'s ResNet-20 for 32x32 RGB images: three blocks per stage, shortcut "A"."""
    return ResidualCNN(classes=classes, depths=(3, 3, 3), shortcut="A")


def resnet56(classes: int = 10) -> ResidualCNN:
    """He et al.'s ResNet-56 for 32x32 RGB images: nine blocks per stage, shortcut "A"."""
    return ResidualCNN(classes=classes, depths=(9, 9, 9), shortcut="A")
