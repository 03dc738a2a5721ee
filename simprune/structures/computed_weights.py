"""Layers that compute with another weight than the one they hold, such as convolutions that standardise it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from simprune.core.structures import UnitGroup
from simprune.trace.context import eval_mode, uncached
from simprune.trace.layers import Convolution
from simprune.trace.network import Network

SHOWN = 3  # names of layers in a reason
READERS = {
    F.linear, torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
}  # fmt: skip


def computing(network: Network, group: UnitGroup) -> str | None:
    """Which layers of a group compute their weights, so that a part of them cannot go alone, and what to do about it.

    Asked only where a group cannot lose units: a weight that is merely scaled can lose entries like another one.

    Args:
        network: the original.
        group: of units.

    Returns:
        A reason for users; None where all layers compute with the weights that they hold.
    """
    names = dict.fromkeys(part.module for part in group.slices)
    layers = {name: module for name in names if _is_own(module := network.model.get_submodule(name))}
    if not layers:
        return None
    args, kwargs = network.example
    held = _Held(layers.values())
    with eval_mode(network.model), uncached(network.model), torch.no_grad(), held:
        network.model(*args, **kwargs)
    computed = {name: type(module).__name__ for name, module in layers.items() if module in held.waiting}
    if not computed:
        return None
    shown = ", ".join(list(computed)[:SHOWN]) + (f" and {len(computed) - SHOWN} more" if len(computed) > SHOWN else "")
    return (
        f"of weights that are computed in the forward pass ({shown}: {next(iter(computed.values()))}) no part can go "
        "alone: put layers of torch.nn with the computed weights in their place"
    )


def _is_own(module: nn.Module) -> bool:
    """Whether a layer with a weight is of a class of the user's, below one of torch."""
    if not isinstance(module, Convolution | nn.Linear) or type(module).__module__.startswith("torch.nn."):
        return False
    return module._parameters.get("weight") is not None


class _Held(TorchFunctionMode):
    """Sees which layers' own weights a forward pass uses; `waiting` are those whose weights it does not."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.waiting = {*layers}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in READERS:
            used = args[1] if len(args) > 1 else kwargs.get("weight")
            self.waiting = {layer for layer in self.waiting if not _same(layer, used)}
        return func(*args, **kwargs)


def _same(layer: nn.Module, used: Any) -> bool:
    """Whether a weight that is used is a layer's own, perhaps in another precision."""
    own = layer.get_parameter("weight")
    if used is own:
        return True
    fits = isinstance(used, Tensor) and used.shape == own.shape and used.dtype != own.dtype
    return fits and torch.allclose(used.double(), own.double(), rtol=1e-2)
