"""One function written in several layouts: maps, sequences, volumes, channels last, tokens, transposed convolutions."""

import torch
from torch import Tensor, nn

WIDTH, HIDDEN, SIDE = 6, 9, 4
# name -> (layer of (inputs, outputs), shape of an input's positions, whether channels are last)
POINTWISE = {
    "tokens": (nn.Linear, (SIDE * SIDE,), True),
    "channels last": (nn.Linear, (SIDE, SIDE), True),
    "sequence": (lambda a, b: nn.Conv1d(a, b, 1), (SIDE * SIDE,), False),
    "map": (lambda a, b: nn.Conv2d(a, b, 1), (SIDE, SIDE), False),
    "volume": (lambda a, b: nn.Conv3d(a, b, 1), (SIDE, 2, SIDE // 2), False),
    "transposed sequence": (lambda a, b: nn.ConvTranspose1d(a, b, 1), (SIDE * SIDE,), False),
    "transposed map": (lambda a, b: nn.ConvTranspose2d(a, b, 1), (SIDE, SIDE), False),
    "transposed volume": (lambda a, b: nn.ConvTranspose3d(a, b, 1), (SIDE, 2, SIDE // 2), False),
}
# name -> (convolution, BatchNorm, dimensions before the one that kernels span)
SPANNING = {
    "map": (nn.Conv2d, nn.BatchNorm2d, 1),
    "sequence": (nn.Conv1d, nn.BatchNorm1d, 0),
    "volume": (nn.Conv3d, nn.BatchNorm3d, 2),
    "transposed map": (nn.ConvTranspose2d, nn.BatchNorm2d, 1),
    "transposed sequence": (nn.ConvTranspose1d, nn.BatchNorm1d, 0),
    "transposed volume": (nn.ConvTranspose3d, nn.BatchNorm3d, 2),
}


class Block(nn.Module):
    """x + second(relu(first(x)))."""

    def __init__(self, make, norm=nn.Identity) -> None:
        super().__init__()
        self.first, self.norm, self.second = make(WIDTH, HIDDEN), norm(HIDDEN), make(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.norm(self.first(x)).relu())


class Layout(nn.Module):
    """A stem, three residual blocks and a classifier on the mean over positions."""

    def __init__(self, make, axis: int, norm=nn.Identity) -> None:
        super().__init__()
        self.axis = axis
        self.stem, self.head = make(3, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.Sequential(*[Block(make, norm) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).relu().movedim(self.axis, -1).flatten(1, -2).mean(1))


def matrix(parameter: Tensor, transposed: bool) -> Tensor:
    """A weight as (outputs, inputs, taps), whatever the layout; a bias as it is.

    A transposed convolution of stride 1 is a plain one with its taps reversed.
    """
    if parameter.ndim < 2:
        return parameter
    transposed = transposed and parameter.ndim > 2
    weight = parameter.transpose(0, 1) if transposed else parameter
    weight = weight.reshape(*weight.shape[:2], -1)
    return weight.flip(2) if transposed else weight


def fill(model: nn.Module, transposed: bool) -> nn.Module:
    """Set the parameters to numbers that do not depend on the layout."""
    for name, parameter in model.named_parameters():
        rows = torch.Generator().manual_seed(sum(map(ord, name)))
        value = matrix(parameter, transposed)
        noise = torch.randn(value.numel(), generator=rows, dtype=torch.float64).reshape(value.shape)
        noise = noise * (value[0].numel() ** -0.5 if value.ndim > 1 else 0.3)
        if transposed and parameter.ndim > 2:
            noise = noise.flip(2).transpose(0, 1)
        with torch.no_grad():
            parameter.copy_(noise.reshape(parameter.shape) + (1 if "norm.weight" in name else 0))
    return model.eval()


def inputs(rows: int = 24) -> list[Tensor]:
    """Batches (N, 3, positions), not all of one size."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, SIDE * SIDE, generator=generator, dtype=torch.float64)
    return [x[: rows // 2], x[rows // 2 :]]


def pointwise(name: str) -> tuple[nn.Module, list[Tensor]]:
    """The network in one of the layouts of `POINTWISE`, and its batches."""
    make, shape, last = POINTWISE[name]
    model = fill(Layout(make, -1 if last else 1).double(), "transposed" in name)
    batches = [x.unflatten(2, shape) for x in inputs()]
    return model, [x.movedim(1, -1) if last else x for x in batches]


def spanning(name: str) -> tuple[nn.Module, list[Tensor]]:
    """The network with kernels of three taps in one of the layouts of `SPANNING`, and its batches."""
    make, norm, before = SPANNING[name]

    def layer(a: int, b: int) -> nn.Module:
        return make(a, b, (*[1] * before, 3), padding=(*[0] * before, 1))

    model = fill(Layout(layer, 1, norm).double(), "transposed" in name)
    return model, [x.reshape(len(x), 3, *[1] * before, -1) for x in inputs()]


class Permuting(nn.Module):
    """A block of linear layers in a network of maps, which it permutes, or makes tokens of."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.first, self.second, self.tokens = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), tokens

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens:
            y = self.second(self.first(x.flatten(2).transpose(1, 2)).relu())
            return x + y.transpose(1, 2).reshape(x.shape)
        return x + self.second(self.first(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)


class PositionsFirst(Layout):
    """The network on (positions, inputs, channels), as recurrent networks and nn.Transformer have it."""

    def __init__(self) -> None:
        super().__init__(nn.Linear, -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x.transpose(0, 1))).relu().mean(0))


def positions_first() -> tuple[nn.Module, list[Tensor]]:
    """The network of tokens on (positions, inputs, channels), and its batches."""
    return fill(PositionsFirst().double(), False), [x.movedim(1, -1) for x in inputs()]


def permuting(name: str) -> tuple[nn.Module, list[Tensor]]:
    """The network of pointwise maps with blocks that permute "to channels last" or "to tokens", and its batches."""
    model = Layout(POINTWISE["map"][0], 1)
    model.blocks = nn.Sequential(*[Permuting(name == "to tokens") for _ in range(3)])
    return fill(model.double(), False), [x.unflatten(2, (SIDE, SIDE)) for x in inputs()]
