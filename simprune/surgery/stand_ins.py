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
from simprune.example import from_description
from simprune.moments import Moments
from simprune.planning.plan import Plan
from simprune.surgery.bypass import Bypass, Layout
from simprune.surgery.compact import restored
from simprune.surgery.effects import effects_of
from simprune.surgery.least_squares import can_be_fitted, output_dim
from simprune.surgery.visits import visit

RIDGE = 1e-4  # of the mean variance of the input's channels


class Mapped(Bypass):
    """Returns its input plus a map of it: linear over channels, or (`mean`) a constant per channel."""

    def __init__(self, layout: Layout, channels: int, maps: bool, mean: bool) -> None:
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

    One forward pass of the original; (2C)^2 moments per replaced block. Where the plan also removes channels of the
    stream, the map is fitted to those that stay. What a layer has absorbed is left alone. Returns the names of the
    blocks whose replacement was fitted.
    """
    with restored(small):
        names = [edit.name for edit in plan.whole if edit.replace in ("linear", "mean")]
        names = [name for name in names if not getattr(small.get_submodule(name), "folded_into", "")]
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
    kept = _kept(plan, model, names)
    with restored(small):
        for name in names:
            module = small.get_submodule(name)
            assert isinstance(module, Mapped)
            module.set(*(part.to(device_of(small)) for part in _solve(moments[name], module, kept[name])))
    return names


def _kept(plan: Plan, model: nn.Module, names: list[str]) -> dict[str, list[int] | None]:
    """Channels of each block's input that stay, in the original's numbering; None for all.

    What goes at the input of a block is what goes at the input of a layer inside it that reads the same tensor.
    """
    if not any(plan.channels):
        return dict.fromkeys(names)
    example = from_description(plan.inputs, device_of(model))
    effects, visits = effects_of(plan, model, example), visit(model, example)
    found: dict[str, list[int] | None] = {}
    for name in names:
        given = visits[name].given
        assert given is not None
        width = given.shape[1 if given.ndim == 4 else -1]
        for inner, seen in visits.items():
            layer = model.get_submodule(inner)
            weight = getattr(layer, "weight", None)
            inside = inner.startswith(f"{name}.")
            if (
                not inside
                or not isinstance(weight, Tensor)
                or not any(torch.equal(value, given) for value in seen.tensors.values())
            ):
                continue
            dim = 1 - output_dim(layer) if can_be_fitted(layer) else 0
            if dim < weight.ndim and weight.shape[dim] == width:
                found[name] = effects.kept(f"{inner}.weight", dim, width)
                break
        else:
            raise ValueError(f"plan: no layer of {name} reads its input, so its map cannot follow the removed channels")
    return found


def _solve(moments: Moments, module: Mapped, kept: list[int] | None) -> tuple[Tensor, Tensor]:
    width = len(moments.mean) // 2
    inputs = torch.arange(width) if kept is None else torch.tensor(kept)
    inputs = inputs.to(moments.mean.device)
    gram, cross = moments.scatter[inputs][:, inputs], moments.scatter[inputs][:, width + inputs]
    mean, shift = moments.mean[inputs], moments.mean[width + inputs]
    if module.constant:
        return torch.zeros_like(gram), shift
    ridge = RIDGE * gram.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross).T
    return weight, shift - weight @ mean
