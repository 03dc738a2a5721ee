"""Small networks whose activations are no 2-d maps and no tokens: sequences, volumes, channels last, dense outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class TextCNN(nn.Module):
    """Convolutions of several widths over embedded words, the largest value of each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.convolutions = nn.ModuleList(nn.Conv1d(12, 10, width) for width in (2, 3, 4))
        self.head = nn.Linear(30, 4)

    def forward(self, ids: Tensor) -> Tensor:
        words = self.embed(ids).transpose(1, 2)
        return self.head(torch.cat([layer(words).relu().amax(2) for layer in self.convolutions], 1))


class Gated(nn.Module):
    """A causal, dilated, gated convolution with a shortcut, as in WaveNet."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.filter, self.gate = (nn.Conv1d(12, 16, 2, dilation=dilation, padding=dilation) for _ in range(2))
        self.out = nn.Conv1d(16, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))
        return x + self.out(y[..., : -self.dilation])


class WaveNet(nn.Module):
    """A value for every class at every time: fully convolutional."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(2, 12, 1), nn.Conv1d(12, 5, 1)
        self.blocks = nn.ModuleList(Gated(dilation) for dilation in (1, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.relu())


class UNet(nn.Module):
    """Down, and up again to the size of the skipped map by a transposed convolution."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, up = CONVOLUTIONS[dims], TRANSPOSED[dims]
        self.enter, self.down = conv(2, 6, 3, padding=1), conv(6, 10, 3, stride=2, padding=1)
        self.up = up(10, 6, 3, stride=2, padding=1)
        self.join, self.head = conv(12, 8, 3, padding=1), conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = self.enter(x).relu()
        up = self.up(self.down(skipped).relu(), output_size=skipped.shape[2:])
        return self.head(self.join(torch.cat([skipped, up], 1)).relu())


class Windows(nn.Module):
    """A block of Swin: attention within windows of 2 x 2 positions of a stream (N, H, W, channels)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        rows, height, columns, width = x.shape
        x = x.view(rows, height // 2, 2, columns // 2, 2, width).transpose(2, 3).reshape(-1, 4, width)
        q, k, v = self.qkv(x).view(-1, 4, 3, 3, width // 3).permute(2, 0, 3, 1, 4)
        x = self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, width))
        return (
            x.view(rows, height // 2, columns // 2, 2, 2, width).transpose(2, 3).reshape(rows, height, columns, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Four neighbouring positions become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Windows of attention on a stream with channels last, from patches to one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 2, 2)
        self.blocks = nn.Sequential(Windows(12), Windows(12), Merging(12), Windows(24))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x).permute(0, 2, 3, 1))).mean((1, 2)))


def video() -> nn.Module:
    """A classifier of volumes."""
    down = [
        nn.Conv3d(2, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 12, 2),
        nn.ReLU(),
    ]
    return nn.Sequential(*down, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(12, 4))


NETWORKS = {
    "text_cnn": TextCNN,
    "wave_net": WaveNet,
    "video": video,
    "unet_1d": lambda: UNet(1),
    "unet_2d": lambda: UNet(2),
    "unet_3d": lambda: UNet(3),
    "swin_stream": Swin,
}
SHAPES = {
    "wave_net": (2, 12),
    "video": (2, 6, 6, 6),
    "unet_1d": (2, 10),
    "unet_2d": (2, 8, 7),
    "unet_3d": (2, 6, 5, 4),
    "swin_stream": (3, 8, 8),
}


def batch(name: str, rows: int, generator: torch.Generator) -> Tensor:
    """Inputs of one of the networks."""
    if name == "text_cnn":
        return torch.randint(40, (rows, 9), generator=generator)
    return torch.randn(rows, *SHAPES[name], generator=generator)
