"""What stands in the place of a removed block: its input alone, or its input plus a map that is fitted later."""

import torch
from torch import Tensor, nn

from simprune.trace.bypass import Bypass, OutputLayout


class Mapped(Bypass):
    """Returns its input plus a map of it: linear over channels, or (`mean`) a constant per channel."""

    def __init__(self, layout: OutputLayout, channels: int, maps: bool, mean: bool) -> None:
        super().__init__(layout)
        self.maps, self.constant = maps, mean
        self.folded_into = ""  # the layer that has absorbed the map; then there is none here
        if mean:
            self.shift = nn.Parameter(torch.zeros(channels))
        else:
            self.map = nn.Conv2d(channels, channels, 1) if maps else nn.Linear(channels, channels)
            nn.init.zeros_(self.map.weight)
            nn.init.zeros_(torch.as_tensor(self.map.bias))

    def stand_in(self, x: Tensor) -> Tensor:
        if self.folded_into:
            return x
        if self.constant:
            return x + (self.shift[:, None, None] if self.maps else self.shift)
        return x + self.map(x)

    def extra_repr(self) -> str:
        return f"folded into {self.folded_into}" if self.folded_into else ""

    def set(self, weight: Tensor, intercept: Tensor) -> None:
        """The map x -> x + weight x + intercept, with weight (C, C); a mean keeps the intercept only."""
        with torch.no_grad():
            if self.constant:
                self.shift.copy_(intercept)
            else:
                self.map.weight.copy_(weight.reshape(self.map.weight.shape))
                torch.as_tensor(self.map.bias).copy_(intercept)

    def affine(self) -> tuple[Tensor, Tensor]:
        """(A, b) in float64 of x -> A x + b, which is what this does."""
        offset = (self.shift if self.constant else torch.as_tensor(self.map.bias)).detach().double()
        one = torch.eye(len(offset), dtype=torch.float64, device=offset.device)
        return one if self.constant else one + self.map.weight.detach().double().flatten(1), offset

    def empty(self, folded_into: str) -> None:
        """Without its parameters this hands its input on: that layer has absorbed them (see `surgery.absorb`)."""
        self.folded_into = folded_into
        if self.constant:
            del self.shift
        else:
            del self.map


def stand_in(replace: str, layout: OutputLayout, given: Tensor | None) -> Bypass:
    """The module that a plan asks for, doing nothing yet; ValueError for shapes that a map cannot be fitted to."""
    if replace in ("identity", "zero"):
        return Bypass(layout, zero=replace == "zero")
    if given is None or given.ndim not in (2, 3, 4):
        raise ValueError(f"a {replace} replacement needs vectors, tokens or maps; got {given and tuple(given.shape)}")
    maps = given.ndim == 4
    made = Mapped(layout, given.shape[1 if maps else -1], maps, replace == "mean")
    return made.to(given.device, given.dtype)
