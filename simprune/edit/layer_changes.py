"""Every layer before and after a plan: the shape of its weight, its multiply-adds and its parameters."""

import math
from collections.abc import Iterable
from typing import Any

from simprune.core.plan import Plan
from simprune.edit.effects import Effects, effects_of
from simprune.trace.layers import output_dim
from simprune.trace.network import Network


def layer_changes(plan: Plan, network: Network) -> list[dict[str, Any]]:
    """What a plan makes of every layer that has a weight of two dimensions or more.

    Args:
        plan: the edits.
        network: the original.

    Returns:
        One entry per layer, as defined. `shape` is that of its first such weight and `width` the number of its
        outputs; `macs`, multiply-adds with its own weights, and `params` are of all its parameters. Each is a pair,
        before and after; after is None for the shape and width, and 0 for costs, where the layer goes whole.

    Raises:
        ValueError: for a plan that does not fit the network.

    >>> import torch
    >>> from simprune.core.plan import Edit, fingerprint
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> network = Network(model, ((torch.zeros(1, 4),), {}))
    >>> plan = Plan((Edit("channels", "0", (1, 5), 8),), fingerprint(model), {})
    >>> [(layer["name"], layer["shape"], layer["macs"]) for layer in layer_changes(plan, network)]
    [('0', [[8, 4], [6, 4]], [32, 24]), ('2', [[3, 8], [3, 6]], [24, 18])]
    """
    effects, layers = effects_of(plan, network), {}
    for name, tensor in network.costs.tensors.items():
        if tensor.parameter:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return [
        _change(name, matrices[0], parameters, network, effects)
        for name, parameters in layers.items()
        if (matrices := [tensor for tensor in parameters if len(network.costs.tensors[tensor].shape) > 1])
    ]


def _change(name: str, weight: str, parameters: Iterable[str], network: Network, effects: Effects) -> dict[str, Any]:
    """The entry of one layer, whose width is read from its weight."""
    tensors, cut = network.costs.tensors, effects.cut
    remaining = {
        tensor: [length - cut.get((tensor, dim), 0) for dim, length in enumerate(tensors[tensor].shape)]
        for tensor in parameters
    }
    gone = effects.inside_dropped(name) or 0 in remaining[weight]
    before = [(tensors[tensor].macs_per_element, math.prod(tensors[tensor].shape)) for tensor in remaining]
    after = [(tensors[tensor].macs_per_element, 0 if gone else math.prod(remaining[tensor])) for tensor in remaining]
    shape, out = list(tensors[weight].shape), output_dim(network.model.get_submodule(name))
    return {
        "name": name,
        "shape": [shape, None if gone else remaining[weight]],
        "width": [shape[out], None if gone else remaining[weight][out]],
        "macs": [round(sum(macs * elements for macs, elements in state)) for state in (before, after)],
        "params": [sum(elements for _, elements in state) for state in (before, after)],
    }
