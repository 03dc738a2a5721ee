"""What stands where a block was when its input alone is not enough: the input plus a fitted map of it.

ReplaceMe (Shopkhoev et al. 2025) fits one linear map from a block's input to its output in closed form. Here the map
is added to the input, so that it couples the same channels as the block did; it is a linear layer over tokens or
vectors and a 1x1 convolution over maps, fitted by ridge regression on the original's activations.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simprune.batches import device_of
from simprune.capture import Site, run
from simprune.moments import Moments
from simprune.planning.plan import Plan
from simprune.surgery.bypass import Bypass, Layout
from simprune.surgery.compact import restored

RIDGE = 1e-4  # of the mean variance of the input's channels


class Mapped(Bypass):
    """Returns its input plus a map of it: linear over channels, or (`mean`) a constant per channel."""

    def __init__(self, layout: Layout, channels: int, maps: bool, mean: bool) -> None:
        super().__init__(layout)
        self.maps, self.constant = maps, mean
        if mean:
            self.shift = nn.Parameter(torch.zeros(channels))
        else:
            self.map = nn.Conv2d(channels, channels, 1) if maps else nn.Linear(channels, channels)
            nn.init.zeros_(self.map.weight)
            nn.init.zeros_(torch.as_tensor(self.map.bias))

    def stand_in(self, x: Tensor) -> Tensor:
        if self.constant:
            return x + (self.shift[:, None, None] if self.maps else self.shift)
        return x + self.map(x)

    def set(self, weight: Tensor, intercept: Tensor) -> None:
        """The map x -> x + weight x + intercept, with weight (C, C); a mean keeps the intercept only."""
        with torch.no_grad():
            if self.constant:
                self.shift.copy_(intercept)
            else:
                self.map.weight.copy_(weight.reshape(self.map.weight.shape))
                torch.as_tensor(self.map.bias).copy_(intercept)


def stand_in(replace: str, layout: Layout, given: Tensor | None) -> Bypass:
    """The module that a plan asks for, doing nothing yet; ValueError for shapes that a map cannot be fitted to."""
    if replace in ("identity", "zero"):
        return Bypass(layout, zero=replace == "zero")
    if given is None or given.ndim not in (2, 3, 4):
        raise ValueError(f"a {replace} replacement needs vectors, tokens or maps; got {given and tuple(given.shape)}")
    maps = given.ndim == 4
    made = Mapped(layout, given.shape[1 if maps else -1], maps, replace == "mean")
    return made.to(given.device, given.dtype)


def fit_stand_ins(small: nn.Module, plan: Plan, model: nn.Module, calibration: Iterable) -> list[str]:
    """Fit every linear and mean replacement of `plan` in `small`, in place, to the original's input and output there.

    One forward pass of the original; (2C)^2 moments per replaced block. Channels that the plan removes are left out.
    Returns the names of the blocks whose replacement was fitted.
    """
    names = [edit.name for edit in plan.whole if edit.replace in ("linear", "mean")]
    if not names:
        return []
    moments: dict[str, Moments] = {}
    entered: dict[str, Tensor] = {}

    def see(site: Site, value: Tensor) -> None:
        rows = site.rows(value).double()
        if site.side == "input":
            entered[site.module] = rows
            return
        x = entered.pop(site.module)
        found = Moments.of(torch.cat([x, rows - x], 1))
        moments[site.module] = moments[site.module].merge(found) if site.module in moments else found

    run(model, calibration, [Site(name, "positions", side) for name in names for side in ("input", "output")], see)
    with restored(small):
        for name in names:
            module = small.get_submodule(name)
            assert isinstance(module, Mapped)
            module.set(*(part.to(device_of(small)) for part in _solve(moments[name], module)))
    return names


def _solve(moments: Moments, module: Mapped) -> tuple[Tensor, Tensor]:
    width = len(moments.mean) // 2
    kept = module.shift.numel() if module.constant else module.map.weight.shape[0]
    if kept != width:
        raise ValueError("a linear or mean replacement cannot be combined with channel edits of its stream yet")
    gram, cross = moments.scatter[:width, :width], moments.scatter[:width, width:]
    if module.constant:
        return torch.zeros_like(gram), moments.mean[width:]
    ridge = RIDGE * gram.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(gram + ridge * torch.eye(width, dtype=gram.dtype, device=gram.device), cross).T
    return weight, moments.mean[width:] - weight @ moments.mean[:width]
