"""Modules that replace a removed block: they return its input, zeros, or its input plus a map that is fitted later."""

import torch
from torch import Tensor, nn

from simprune.trace.axes import channel_axis
from simprune.trace.bypass import Bypass, OutputLayout

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by the number of dimensions of positions


class Mapped(Bypass):
    """Returns its input plus a map of it, which is zero until `set` is called.

    Args:
        layout: which arguments the outputs are (see `simprune.trace.visits.Visit.layout`).
        channels: of the input.
        maps: how many dimensions lie behind the channels, in dimension 1; 0 where channels are last.
        mean: whether the map is a constant per channel; otherwise it is linear over channels, with a bias.
    """

    def __init__(self, layout: OutputLayout, channels: int, maps: int, mean: bool) -> None:
        super().__init__(layout)
        self.maps, self.constant = maps, mean
        self.folded_into = ""  # the layer that has absorbed the map, which then has no parameters here
        if mean:
            self.shift = nn.Parameter(torch.zeros(channels))
        else:
            self.map = CONVOLUTIONS[maps](channels, channels, 1) if maps else nn.Linear(channels, channels)
            nn.init.zeros_(self.map.weight)
            nn.init.zeros_(torch.as_tensor(self.map.bias))

    def stand_in(self, x: Tensor) -> Tensor:
        if self.folded_into:
            return x
        if self.constant:
            return x + self.shift.reshape(-1, *[1] * self.maps)
        return x + self.map(x)

    def extra_repr(self) -> str:
        return f"folded into {self.folded_into}" if self.folded_into else ""

    def set(self, weight: Tensor, intercept: Tensor) -> None:
        """Set the map to x -> x + weight x + intercept, with weight (C, C); a mean stores the intercept only."""
        with torch.no_grad():
            if self.constant:
                self.shift.copy_(intercept)
            else:
                self.map.weight.copy_(weight.reshape(self.map.weight.shape))
                torch.as_tensor(self.map.bias).copy_(intercept)

    def affine(self) -> tuple[Tensor, Tensor]:
        """(A, b) in float64, with A (C, C) and b (C,), of what this computes: A x + b."""
        offset = (self.shift if self.constant else torch.as_tensor(self.map.bias)).detach().double()
        identity = torch.eye(len(offset), dtype=torch.float64, device=offset.device)
        return identity if self.constant else identity + self.map.weight.detach().double().flatten(1), offset

    def empty(self, folded_into: str) -> None:
        """Delete the parameters, which a layer has absorbed (`simprune.repair.absorb`): the input is returned."""
        self.folded_into = folded_into
        delattr(self, "shift" if self.constant else "map")


def stand_in(replace: str, layout: OutputLayout, x: Tensor | None, axis: int | None = None) -> Bypass:
    """The module that replaces a block.

    Args:
        replace: "identity", "zero", "linear" or "mean".
        layout: which arguments of the block its outputs are.
        x: an input of the block, for its shape, type and device.
        axis: along which the channels of the input lie (see `simprune.trace.axes`).

    Raises:
        ValueError: for an input that is no vectors, tokens or maps, to which a map cannot be fitted.

    >>> stand_in("linear", 0, torch.zeros(1, 4)).map
    Linear(in_features=4, out_features=4, bias=True)
    """
    if replace in ("identity", "zero"):
        return Bypass(layout, zero=replace == "zero")
    if x is None or x.ndim not in (2, 3, 4, 5):
        raise ValueError(
            f"a {replace} replacement needs vectors, tokens or maps; got {None if x is None else tuple(x.shape)}"
        )
    axis = channel_axis(x, axis)
    if axis not in (1, x.ndim - 1):
        raise ValueError(
            f"a {replace} replacement needs channels in dimension 1 or the last one; of {tuple(x.shape)} they lie in "
            f"dimension {axis}"
        )
    return Mapped(layout, x.shape[axis], x.ndim - 1 - axis, replace == "mean").to(x.device, x.dtype)
