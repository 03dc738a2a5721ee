"""Small networks that the tests share: one per trait that matters to pruning."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simprune.scores.estimate import estimate
from simprune.trace.network import Network


class Residual(nn.Module):
    """A stem, residual blocks of one width, a classifier."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Flat(nn.Module):
    """Convolutions whose maps are flattened: every channel is several inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.fc1, self.fc2 = nn.Linear(4 * 16, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1))))


class Concat(nn.Module):
    """Two branches joined by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.join, self.head = nn.Conv2d(10, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.join(F.relu(torch.cat([self.left(x), self.right(x)], 1)))).mean((2, 3)))


class Tokens(nn.Module):
    """A pre-norm transformer block written out, with separate projections."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 20) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.layers = nn.ModuleList([TokenLayer(width, heads, hidden) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class TokenLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def images(rows: int = 12, size: int = 8) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def brightest_pixel_task(rows: int = 240) -> list[tuple[Tensor, Tensor]]:
    """Batches of images whose class is the brightest of five pixels: quick to learn, with something to lose."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 5
    x = torch.randn(rows, 3, 8, 8, generator=generator) * 0.3
    x[torch.arange(rows), 0, labels, labels] += 3
    return list(zip(x.split(40), labels.split(40), strict=True))


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A seeded network in evaluation mode with lively BatchNorm statistics, and inputs for it."""
    torch.manual_seed(0)
    x = torch.randn(12, 7, 6) if name == "Tokens" else images()
    model = {"Residual": Residual, "Flat": Flat, "Concat": Concat, "Tokens": Tokens}[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


NAMES = ("Residual", "Flat", "Concat", "Tokens")


def estimated(model, batches, *args, **kwargs):
    """The redundancy that analysis finds in a model."""
    first = next(iter(batches), None)
    if first is None:
        raise ValueError("calibration has no batches; give at least one")
    return estimate(Network.trace(model, first), batches, *args, **kwargs).redundancy
