"""Fitting the maps that replace blocks: a stand-in returns its input plus a linear map of it, or plus a constant.

ReplaceMe (Shopkhoev et al. 2025) fits one linear map from a block's input to its output in closed form. Here the map
is added to the input, so that it couples the same channels as the block did; it is a linear layer over tokens or
vectors and a 1x1 convolution over maps, fitted by ridge regression on the original's activations.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simprune.core.batches import device_of
from simprune.core.moments import Moments
from simprune.core.plan import Plan
from simprune.edit.compact import restored
from simprune.edit.effects import Effects, effects_of
from simprune.edit.stand_ins import Mapped
from simprune.trace.capture import run
from simprune.trace.layers import can_be_fitted, output_dim
from simprune.trace.network import Network
from simprune.trace.sites import Site

RIDGE = 1e-4  # of the mean variance of the input's channels


def fit_stand_ins(
    small: nn.Module, plan: Plan, network: Network, calibration: Iterable, effects: Effects | None = None
) -> list[str]:
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
        batch = Moments.of(torch.cat([x, rows - x], 1))
        moments[site.module] = moments[site.module].merge(batch) if site.module in moments else batch

    run(
        network.model,
        calibration,
        [Site(name, "positions", side) for name in names for side in ("input", "output")],
        see,
    )
    remaining = _remaining(plan, network, effects, names)
    with restored(small):
        for name in names:
            module = small.get_submodule(name)
            assert isinstance(module, Mapped)
            module.set(*(part.to(device_of(small)) for part in _solve(moments[name], module, remaining[name])))
    return names


def _remaining(plan: Plan, network: Network, effects: Effects | None, names: list[str]) -> dict[str, list[int] | None]:
    """Channels of each block's input that stay, in the original's numbering; None for all.

    A block loses the same input channels as a layer inside it that reads the same tensor.
    """
    if not plan.of_kind("channels"):
        return dict.fromkeys(names)
    effects, visits, model = effects or effects_of(plan, network), network.visits, network.model
    found: dict[str, list[int] | None] = {}
    for name in names:
        value_in = visits[name].input
        assert value_in is not None
        width = value_in.shape[1 if value_in.ndim == 4 else -1]
        for inner, seen in visits.items():
            layer = model.get_submodule(inner)
            weight = getattr(layer, "weight", None)
            inside = inner.startswith(f"{name}.")
            if (
                not inside
                or not isinstance(weight, Tensor)
                or not any(torch.equal(value, value_in) for value in seen.tensors.values())
            ):
                continue
            dim = 1 - output_dim(layer) if can_be_fitted(layer) else 0
            if dim < weight.ndim and weight.shape[dim] == width:
                found[name] = effects.remaining(f"{inner}.weight", dim, width)
                break
        else:
            raise ValueError(f"plan: no layer of {name} reads its input, so its map cannot follow the removed channels")
    return found


def _solve(moments: Moments, module: Mapped, remaining: list[int] | None) -> tuple[Tensor, Tensor]:
    width = len(moments.mean) // 2
    inputs = torch.arange(width) if remaining is None else torch.tensor(remaining)
    inputs = inputs.to(moments.mean.device)
    gram, cross = moments.scatter[inputs][:, inputs], moments.scatter[inputs][:, width + inputs]
    mean, shift = moments.mean[inputs], moments.mean[width + inputs]
    if module.constant:
        return torch.zeros_like(gram), shift
    ridge = RIDGE * gram.diagonal().mean() + 1e-12
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), cross).T
    return weight, shift - weight @ mean
