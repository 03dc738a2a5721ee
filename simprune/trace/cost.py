"""What a model costs: multiply-adds, parameters, bytes, measured latency; and what is left of them after edits.

One multiply-add is one mac (FLOPs = 2 x macs), counted per input row by torch's FlopCounterMode with attention
in plain matrix products; BatchNorm, activations and other elementwise work count nothing.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simprune.core.batches import first_tensor
from simprune.core.cost import Cost, CostModel, Example, Key, StreamCost, TensorCost
from simprune.core.example import rows_of
from simprune.trace.attention import attentions, is_conv1d
from simprune.trace.context import eval_mode, requiring
from simprune.trace.hooks import After, Before, hooks

PROJECTIONS = ("aten.mm", "aten.addmm")  # what nn.MultiheadAttention does with its own weights


def _flops_by_module(model: nn.Module, example: Example) -> dict[str, Counter[str]]:
    """Multiply-adds times two by module ("" is the whole model) and operator, for the whole example batch."""
    args, kwargs = example
    counter = FlopCounterMode(display=False)
    # the counter cannot follow views of parameters that modules get as arguments while parameters want gradients
    with eval_mode(model), torch.no_grad(), requiring(model), sdpa_kernel(SDPBackend.MATH), counter:
        model(*args, **kwargs)
    counts = {
        name: Counter({str(operator): count for operator, count in by_operator.items()})
        for name, by_operator in counter.get_flop_counts().items()
    }
    root = type(model).__name__
    return {"": counts.get("Global", Counter())} | {
        name.removeprefix(f"{root}."): count for name, count in counts.items() if name.startswith(f"{root}.")
    }


class _Streams:
    """Watches one forward pass for modules that return what has the shape of the first such argument."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        self.found: dict[str, StreamCost] = {}
        self._rows = rows
        self._open: dict[str, list[Tensor]] = {}  # modules that are running: the tensors they got
        self._readers: dict[tuple[str, int], Key] = {}
        self.before: list[tuple[nn.Module, Before]] = []
        self.after: list[tuple[nn.Module, After]] = []
        for name, module in model.named_modules():
            if name and next(module.children(), None) is not None:
                self.before.append((module, self._enter(name)))
                self.after.append((module, self._leave(name)))
            elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
                dim = int(weight.ndim > 1) if not is_conv1d(module) else 0
                self.before.append((module, self._read((f"{name}.weight", dim))))

    def _enter(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
            self._open[name] = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)]

        return see

    def _read(self, key: Key) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple, __: dict) -> None:
            for name, given in self._open.items():
                for place, value in enumerate(given):
                    if args and args[0] is value:
                        self._readers.setdefault((name, place), key)

        return see

    def _leave(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, __: tuple, ___: dict, output: Any) -> None:
            made, given = first_tensor(output), self._open.pop(name, [])
            place = next((i for i, x in enumerate(given) if made is not None and x.shape == made.shape), None)
            if made is None or place is None or made.ndim not in (2, 3, 4):
                return
            channels = made.shape[1 if made.ndim == 4 else -1]
            reader = self._readers.get((name, place))
            self.found[name] = StreamCost(channels, made.numel() / channels / self._rows, made.element_size(), reader)

        return see


def cost_model(model: nn.Module, example: Example) -> CostModel:
    """The cost model of a network, from one forward pass on an example (see `simprune.core.example`)."""
    rows = rows_of(example)
    streams = _Streams(model, rows)
    with hooks(streams.before, streams.after):
        flops = _flops_by_module(model, example)
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}  # tied weights: the first name counts all
    attention = attentions(model)
    weights: Counter[str] = Counter()
    fixed: dict[str, int] = {}
    products: dict[str, tuple[str, int, float]] = {}
    for name, module in model.named_modules():
        children = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        by_operator = Counter(flops.get(name, {}))
        for child in children:
            by_operator.subtract(flops.get(child, {}))
        own = sum(by_operator.values()) / (2 * rows)
        weight = getattr(module, "weight", None)
        if own and not children and isinstance(weight, nn.Parameter):
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
    tensors = {
        name: TensorCost(tuple(tensor.shape), tensor.element_size(), weights.get(name, 0.0), name in parameters)
        for name, tensor in [*parameters.items(), *model.named_buffers()]
    }
    return CostModel(tensors, fixed, products, streams.found)


def measure_cost(model: nn.Module, example: Example) -> Cost:
    """Cost of a network as it is.

    >>> measure_cost(nn.Linear(4, 3), ((torch.zeros(2, 4),), {}))
    Cost(macs=12, params=15, bytes=60)
    """
    return cost_model(model, example).total()
