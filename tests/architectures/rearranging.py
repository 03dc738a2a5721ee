"""Small networks that split, slice, gate and shuffle channels between a layer and its readers."""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, channels, height, width = x.shape
    return x.view(n, groups, channels // groups, height, width).transpose(1, 2).reshape(n, channels, height, width)


class Between(nn.Module):
    """Two layers and what happens between them: `first` gives 24 channels, `second` reads what `middle` leaves."""

    def __init__(self, middle: Callable[[Tensor], Tensor], reads: int) -> None:
        super().__init__()
        self.stem, self.first = conv(3, 8), nn.Conv2d(8, 24, 3, padding=1)
        self.middle, self.second = middle, nn.Conv2d(reads, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.middle(torch.relu(self.first(self.stem(x))))).relu().mean((2, 3)))


def swapped_halves(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.cat([x[:, half:], 2 * x[:, :half]], 1)


def even_times_odd(x: Tensor) -> Tensor:
    return x[:, ::2] * x[:, 1::2].tanh()


def unbound(x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    gate, value = x.view(n, 2, channels // 2, height, width).unbind(1)
    return gate.sigmoid() * value


def three_parts(x: Tensor) -> Tensor:
    first, second, third = x.chunk(3, 1)
    return first + second.sigmoid() * third


def depth_to_space(x: Tensor) -> Tensor:  # as einops writes "b (c p q) h w -> b c (h p) (w q)"
    n, channels, height, width = x.shape
    parts = x.reshape(n, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, channels // 4, 2 * height, 2 * width)


MIDDLES = {
    "chunk": (lambda x: torch.cat([x.chunk(2, 1)[0], x], 1), 36),
    "swapped_halves": (swapped_halves, 24),
    "even_times_odd": (even_times_odd, 12),
    "unbound": (unbound, 12),
    "three_parts": (three_parts, 8),
    "glu": (lambda x: F.glu(x, 1), 12),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 6),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 96),
    "depth_to_space": (depth_to_space, 6),
    "shuffle": (lambda x: shuffle(x, 3), 24),
    "two_shuffles": (lambda x: shuffle(torch.relu(shuffle(x, 3)), 2), 24),
    "written_into": (lambda x: written_into(x), 24),
}


def written_into(x: Tensor) -> Tensor:
    """Halves written into an empty tensor."""
    y, half = torch.zeros_like(x), x.shape[1] // 2
    y[:, :half] = x[:, half:]
    y[:, half:] = x[:, :half].tanh()
    return y


class C2f(nn.Module):
    """The block of YOLOv8: a layer's halves, and a chain of layers on the second one, are read together."""

    def __init__(self, splits: bool) -> None:
        super().__init__()
        self.c, self.splits = 8, splits
        self.cv1, self.cv2 = conv(12, 16, 1), conv(32, 12, 1)
        self.m = nn.ModuleList(conv(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        parts = list(y.split((self.c, self.c), 1) if self.splits else y.chunk(2, 1))
        parts.extend(layer(parts[-1]) for layer in self.m)
        return self.cv2(torch.cat(parts, 1))


class GatedDepthwise(nn.Module):
    """The feed-forward part of Restormer."""

    def __init__(self) -> None:
        super().__init__()
        self.project_in, self.project_out = nn.Conv2d(12, 40, 1), nn.Conv2d(20, 12, 1)
        self.dwconv = nn.Conv2d(40, 40, 3, padding=1, groups=40)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.dwconv(self.project_in(x)).chunk(2, 1)
        return x + self.project_out(F.gelu(first) * second)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNetV2: half of the channels pass by, and the halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), conv(6, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = x.chunk(2, 1)
        return shuffle(torch.cat([passed, self.branch(worked)], 1), 2)


class ShuffledGroups(nn.Module):
    """The unit of ShuffleNet: a shuffle between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 24, 1, groups=2), nn.Conv2d(24, 12, 1, groups=2)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.depthwise(shuffle(torch.relu(self.first(x)), 2)))


class Multiplied(nn.Module):
    """Several outputs of every channel, each of it alone, as in EEGNet and where FastViT halves its maps."""

    def __init__(self, size: int, width: int = 12) -> None:
        super().__init__()
        self.wide, self.norm = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width), nn.BatchNorm2d(2 * width)
        self.wider, self.narrow = nn.Conv2d(2 * width, 6 * width, 1, groups=2 * width), nn.Conv2d(6 * width, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wider(self.norm(self.wide(x)))))


class Stacked(nn.Module):
    """A stem, blocks, and a classifier of the mean."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = conv(3, 12), nn.Sequential(*blocks), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Mixer(nn.Module):
    """The block of MLP-Mixer, whose first half mixes positions: its own positions are the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(16, 10), nn.GELU(), nn.Linear(10, 16))
        self.channels = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


class SpatialGate(nn.Module):
    """The block of gMLP: one half of the hidden units is multiplied with a mixture of positions of the other.

    Without normalisations, whose statistics change with every channel; as the block above.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(12, 40), nn.Linear(16, 16), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.gelu(self.up(x)).chunk(2, -1)
        return x + self.down(value * self.gate(gate.transpose(1, 2)).transpose(1, 2))


class OfTokens(nn.Module):
    """A stem that makes tokens of patches, blocks, and a classifier of the mean."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 12, 2, 2), nn.Sequential(*blocks), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class ScalarPrelu(nn.Module):
    """PReLU with one parameter in front of a flatten, as in face recognition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 12, 3, 2, 1)
        self.act1, self.act2 = nn.PReLU(), nn.PReLU(init=0.4)
        self.fc, self.head = nn.Linear(48, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.second(self.act1(self.first(x))))
        return self.head(torch.relu(self.fc(x.flatten(1))))


class GatedTokens(nn.Module):
    """SwiGLU from one fused layer, split by a number that the module states."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 20
        self.embed, self.fused, self.down = nn.Conv2d(3, 12, 1), nn.Linear(12, 40), nn.Linear(20, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        gate, value = self.fused(x).split(self.width, -1)
        return self.head((x + self.down(F.silu(gate) * value)).mean(1))


class Decoder(nn.Module):
    """A linear layer whose outputs become maps."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.inner = 8, nn.Linear(24, 128)
        self.stem, self.conv, self.head = nn.Conv2d(3, 24, 8), nn.Conv2d(8, 10, 3, padding=1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.inner(self.stem(x).flatten(1))).view(-1, self.channels, 4, 4)
        return self.head(torch.relu(self.conv(maps)).mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda middle=middle, reads=reads: Between(middle, reads) for name, (middle, reads) in MIDDLES.items()},
    "c2f_chunk": lambda: Stacked(C2f(False), C2f(False)),
    "c2f_split": lambda: Stacked(C2f(True)),
    "gated_depthwise": lambda: Stacked(GatedDepthwise()),
    "shuffle_units": lambda: Stacked(ShuffleUnit(), ShuffleUnit()),
    "shuffled_groups": lambda: Stacked(ShuffledGroups(), ShuffledGroups()),
    "multiplied": lambda: Stacked(Multiplied(12)),
    "multiplied_inputs": lambda: nn.Sequential(
        OrderedDict(middle=Multiplied(8, 3), flat=nn.Flatten(), head=nn.Linear(8 * 64, 5))
    ),
    "mixer": lambda: OfTokens(Mixer(), Mixer()),
    "spatial_gate": lambda: OfTokens(SpatialGate()),
    "scalar_prelu": ScalarPrelu,
    "gated_tokens": GatedTokens,
    "decoder": Decoder,
}


def make(name: str) -> nn.Module:
    """One of the networks, with the same weights in every call; no tensor has entries that are all alike."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model.eval()
