"""Fitting the maps that replace blocks: a stand-in returns its input plus a linear map of it, or plus a constant.

ReplaceMe (Shopkhoev et al. 2025) fits one linear map from a block's input to its output in closed form. Here the map
is added to the input, so that it couples the same channels as the block did; it is a linear layer over tokens or
vectors and a 1x1 convolution over maps, fitted by ridge regression on the original's activations.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simprune.core.moments import Moments
from simprune.core.plan import Plan
from simprune.edit.compact import restored
from simprune.edit.effects import Effects, effects_of
from simprune.edit.stand_ins import Mapped
from simprune.repair.problem import Products
from simprune.trace.capture import run
from simprune.trace.layers import can_be_fitted, output_dim
from simprune.trace.network import Network
from simprune.trace.sites import Site
from simprune.trace.visits import visit

RIDGE = 1e-4  # of the mean variance of the input's channels


def fit_stand_ins(
    small: nn.Module, plan: Plan, network: Network, calibration: Iterable, effects: Effects | None = None
) -> list[str]:
    """Fit every linear and mean replacement of a plan, in place, to the original's input and output of the block.

    One forward pass of the original; (2C)^2 moments per replaced block of C channels. Where the plan also removes
    channels of the stream, the map is fitted to those that stay. What a layer has absorbed is left alone.

    Args:
        small: the edited network, whose stand-ins are set.
        plan: the plan that it was edited by.
        network: the original.
        calibration: batches, walked once; not at all where there is nothing to fit.
        effects: of the plan, if they are known.

    Returns:
        The names of the blocks whose replacement was fitted.

    Raises:
        ValueError: where channels of a stream are removed that no layer of the block reads.

    >>> from simprune.core.plan import Edit
    >>> from simprune.edit.apply import apply
    >>> from simprune.zoo.residual import ResidualCNN
    >>> network = Network.trace(ResidualCNN(widths=(8, 16), depths=(2, 2)).eval(), torch.randn(2, 3, 8, 8))
    >>> plan = Plan((Edit("block", "layer1.1", replace="linear"),), network.fingerprint, {})
    >>> fit_stand_ins(apply(plan, network), plan, network, [torch.randn(8, 3, 8, 8)])
    ['layer1.1']
    """
    with restored(small):
        replaced = {
            edit.name: small.get_submodule(edit.name) for edit in plan.whole if edit.replace in ("linear", "mean")
        }
    stand_ins = {
        name: module for name, module in replaced.items() if isinstance(module, Mapped) and not module.folded_into
    }
    if not stand_ins:
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

    sites = [Site(name, "positions", side) for name in stand_ins for side in ("input", "output")]
    run(network.model, calibration, sites, see, network.axes)
    narrower = bool(plan.of_kind("channels"))
    if narrower and effects is None:
        effects = effects_of(plan, network)
    for name, module in stand_ins.items():
        width = len(moments[name].mean) // 2
        inputs = torch.tensor(_remaining(name, width, network, effects) if narrower and effects else range(width))
        both = torch.cat([inputs, width + inputs]).to(moments[name].mean.device)
        part = Moments(moments[name].count, moments[name].mean[both], moments[name].scatter[both][:, both])
        if module.constant:
            module.set(part.scatter, part.mean[len(inputs) :])
        else:
            module.set(*Products.of(part, len(inputs)).solver()(RIDGE))
    return [*stand_ins]


def _remaining(name: str, width: int, network: Network, effects: Effects) -> list[int]:
    """Indices of the remaining channels of a block's input, which is as wide as `width` in the original.

    A block loses the same input channels as a layer inside it that reads the same tensor.
    """
    entering, block = network.visits[name].input, network.model.get_submodule(name)
    assert entering is not None
    for inner, visited in visit(block, network.visits[name].call).items():
        layer = block.get_submodule(inner)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        dim = 1 - output_dim(layer) if can_be_fitted(layer) else 0
        fits = dim < weight.ndim and weight.shape[dim] == width
        if fits and any(torch.equal(value, entering) for value in visited.tensors.values()):
            return effects.remaining(f"{name}.{inner}.weight", dim, width)
    raise ValueError(f"plan: no layer of {name} reads its input, so its map cannot follow the removed channels")
