"""Reading what a model costs: multiply-adds, parameters and bytes, term by term (see `simprune.core.cost`).

One multiply-add is one mac (FLOPs = 2 x macs). torch's FlopCounterMode counts them, attention as plain matrix products,
and they are stated per input row. BatchNorm, activations and other elementwise work cost nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simprune.core.batches import first_tensor
from simprune.core.cost import Cost, CostModel, Example, Key, StreamCost, TensorCost
from simprune.core.example import rows_of
from simprune.trace.attention import attentions
from simprune.trace.axes import Axes, axes_of, channel_axis
from simprune.trace.context import eval_mode, requiring
from simprune.trace.experts import Mixture, mixtures
from simprune.trace.hooks import After, Before, hooks
from simprune.trace.layers import output_dim

# the operators by which nn.MultiheadAttention applies its own weights
PROJECTIONS = (torch.ops.aten.mm, torch.ops.aten.addmm)


class _Flops:
    """Multiply-adds times two by module ("" is the model) and operator, without those of modules that it calls.

    Read by hooks around a counter of torch, whose own names of modules are not those of a module with several names.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counter = FlopCounterMode(display=False)
        self.own: dict[str, Counter] = defaultdict(Counter)
        self._running: list[tuple[dict, dict]] = []  # counts when a module began, and those of what it called
        self.before = [(module, self._enter) for module in model.modules()]
        self.after = [(module, partial(self._leave, name)) for name, module in model.named_modules()]

    def _enter(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        self._running.append((dict(self.counter.flop_counts["Global"]), {}))

    def _leave(self, name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        begun, called = self._running.pop()
        caller = self._running[-1][1] if self._running else {}
        for operator, total in self.counter.flop_counts["Global"].items():
            count = total - begun.get(operator, 0)
            if count:
                self.own[name][operator] += count - called.get(operator, 0)
                caller[operator] = caller.get(operator, 0) + count


class _Streams:
    """The costs of blocks whose output has the shape of an argument, read by hooks during one forward pass."""

    def __init__(self, model: nn.Module, rows: int, axes: Axes) -> None:
        self.costs: dict[str, StreamCost] = {}
        self._axes = axes
        self._rows = rows
        self._running: dict[str, list[Tensor]] = {}  # modules that are running, with their tensor arguments
        self._readers: dict[tuple[str, int], Key] = {}  # (module, index of an argument) -> a weight that reads it
        self.before: list[tuple[nn.Module, Before]] = []
        self.after: list[tuple[nn.Module, After]] = []
        for name, module in model.named_modules():
            if name and next(module.children(), None) is not None:
                self.before.append((module, partial(self._enter, name)))
                self.after.append((module, partial(self._leave, name)))
            elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
                dim = int(weight.ndim > 1) - output_dim(module)
                self.before.append((module, partial(self._read, (f"{name}.weight", dim))))

    def _enter(self, name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        self._running[name] = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)]

    def _read(self, key: Key, _: nn.Module, args: tuple, kwargs: dict) -> None:
        for name, inputs in self._running.items():
            for index, value in enumerate(inputs):
                if args and args[0] is value:
                    self._readers.setdefault((name, index), key)

    def _leave(self, name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value, inputs = first_tensor(output), self._running.pop(name, [])
        index = next((i for i, x in enumerate(inputs) if value is not None and x.shape == value.shape), None)
        if value is None or index is None or value.ndim not in (2, 3, 4, 5):
            return
        channels = value.shape[channel_axis(value, self._axes.of(name, "output"))]
        positions = value.numel() / channels / self._rows
        self.costs[name] = StreamCost(channels, positions, value.element_size(), self._readers.get((name, index)))


def cost_model(
    model: nn.Module, example: Example, axes: Axes | None = None, mixers: Mapping[str, Key] | None = None
) -> CostModel:
    """The cost model of a network, from one forward pass.

    Args:
        model: the network, which is left as it was.
        example: its arguments (see `simprune.core.example`); costs are per row of them.
        axes: of the network, if they are known; otherwise one more pass tells them.
        mixers: of layers that mix positions (see `CostModel`), where removals matter.

    >>> cost_model(nn.Linear(4, 3), ((torch.zeros(2, 4),), {})).after({("weight", 0): 1, ("bias", 0): 1})
    Cost(macs=8, params=10, bytes=40)
    """
    rows = rows_of(example)
    streams = _Streams(model, rows, axes_of(model, example) if axes is None else axes)
    sparse = mixtures(model)
    tokens: dict[str, float] = {}  # that enter a mixture, per row

    def count(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        states = first_tensor((args, kwargs))
        if states is not None:
            tokens[name] = tokens.get(name, 0) + states.numel() / states.shape[-1] / rows

    counted = [(model.get_submodule(name), partial(count, name)) for name in sparse]
    flops, (args, kwargs) = _Flops(model), example
    # no parameter may require gradients: the counter fails on a module that gets a view of such a parameter
    with (
        hooks([*streams.before, *counted, *flops.before], [*streams.after, *flops.after]),
        eval_mode(model), torch.no_grad(), requiring(model), sdpa_kernel(SDPBackend.MATH), flops.counter,
    ):  # fmt: skip
        model(*args, **kwargs)
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}  # tied weights count under their first name
    attention = attentions(model)
    weights: Counter[str] = Counter()
    fixed: dict[str, int] = {}
    products: dict[str, tuple[str, int, float]] = {}
    for name, module in model.named_modules():
        by_operator = flops.own[name]
        own = sum(by_operator.values()) / (2 * rows)
        weight = getattr(module, "weight", None)
        if own and isinstance(weight, nn.Parameter) and next(module.children(), None) is None:
            weights[names[weight]] += own / weight.numel()  # type: ignore[assignment]
        elif own and name in attention:
            inside = [tensor for tensor, _ in attention[name].reads if tensor.rpartition(".")[0] == name]
            projected = sum(by_operator[operator] for operator in PROJECTIONS) / (2 * rows) if inside else 0
            for tensor in inside:
                weights[tensor] += projected / sum(parameters[other].numel() for other in inside)  # type: ignore[assignment]
            joint = attention[name].joint
            products[name] = (joint.tensor, joint.dim, (own - projected) / parameters[joint.tensor].shape[joint.dim])
        elif own:
            fixed[name] = round(own)
    for name, mixture in sparse.items():
        _count_selected(mixture, tokens.get(name, 0.0), parameters, weights, fixed)
    tensors = {
        name: TensorCost(tuple(tensor.shape), tensor.element_size(), weights.get(name, 0.0), name in parameters)
        for name, tensor in [*parameters.items(), *model.named_buffers()]
    }
    return CostModel(tensors, fixed, products, streams.costs, mixers or {})


def _count_selected(
    mixture: Mixture, tokens: float, parameters: Mapping[str, Tensor], weights: Counter, fixed: dict[str, int]
) -> None:
    """Count the experts that a token selects: as many as before when there are fewer experts to select from.

    Where experts are one tensor, torch does not count their products, or counts them for the module that holds them.
    Experts in a list cost what those that were selected cost. Experts that all tokens run through are left as they are
    counted, by their weights.

    Args:
        mixture: the experts.
        tokens: that enter it, per row.
        parameters: of the model.
        weights: macs per element of every weight, changed in place.
        fixed: macs of modules that follow from no tensor, changed in place.
    """
    matrices = [name for name in mixture.fused if parameters[name].ndim == 3]
    if matrices:
        elements = sum(parameters[name].numel() for name in matrices)
        owners = dict.fromkeys(name.rpartition(".")[0] for name in matrices)
        counted = sum(fixed.pop(owner, 0) for owner in owners)
        if counted == round(tokens * elements) and mixture.selected < mixture.size:  # every token runs through all
            weights.update(dict.fromkeys(matrices, counted / elements))
        else:
            fixed[next(iter(owners))] = round(tokens * mixture.selected * elements / mixture.size)
        return
    inside = [name for name in parameters if any(name.startswith(f"{member}.") for member in mixture.members)]
    macs = sum(weights[name] * parameters[name].numel() for name in inside)
    if macs < tokens * sum(parameters[name].numel() for name in inside if parameters[name].ndim > 1):
        fixed[mixture.container] = fixed.get(mixture.container, 0) + round(macs)
        for name in inside:
            del weights[name]


def measure_cost(model: nn.Module, example: Example) -> Cost:
    """The cost of a network on an example, per row.

    >>> measure_cost(nn.Linear(4, 3), ((torch.zeros(2, 4),), {}))
    Cost(macs=12, params=15, bytes=60)
    """
    return cost_model(model, example, Axes({}, {})).total()  # the axes matter for stand-ins alone
