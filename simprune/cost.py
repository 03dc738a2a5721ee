"""What a model costs: multiply-adds, parameters, bytes, measured latency; and what is left of them after edits.

One multiply-add is one mac (FLOPs = 2 x macs), counted per input row by torch's FlopCounterMode with attention
in plain matrix products; BatchNorm, activations and other elementwise work count nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from simprune.attention import attentions
from simprune.batches import eval_mode, evaluation

Example = tuple[tuple, dict]
PROJECTIONS = ("aten.mm", "aten.addmm")  # what nn.MultiheadAttention does with its own weights
KINDS = ("macs", "params", "bytes")


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one input, number of parameters, bytes of parameters and buffers."""

    macs: int
    params: int
    bytes: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def share_of(self, whole: "Cost") -> dict[str, float]:
        """Each kind as a fraction of another cost's."""
        return {kind: getattr(self, kind) / max(getattr(whole, kind), 1) for kind in KINDS}


@dataclass(frozen=True)
class TensorCost:
    """One parameter or buffer: its shape, bytes per element, and the macs each of its elements takes part in."""

    shape: tuple[int, ...]
    itemsize: int
    macs_per_element: float
    parameter: bool


@dataclass(frozen=True)
class CostModel:
    """Exact cost of a model and of what is left after slices of tensors or whole modules are removed.

    The macs of a convolution or linear layer follow the number of elements of its weight, because every element
    is used once per output position; `fixed` macs (matrix products without a weight) go only with their module. The
    products of queries, keys and values follow the number of entries of the heads: `products` names, for each
    attention module, the tensor and dimension along which the heads lie, and the macs per entry.
    """

    tensors: Mapping[str, TensorCost]
    fixed: Mapping[str, int]
    products: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)

    def total(self) -> Cost:
        return self.after()

    def after(self, cut: Mapping[tuple[str, int], int] | None = None, dropped: Iterable[str] = ()) -> Cost:
        """Cost when `cut[tensor, dim]` entries are gone from tensors and the modules `dropped` are gone whole."""
        prefixes = tuple(f"{name}." for name in dropped)
        cut = cut or {}
        by_tensor: dict[str, dict[int, int]] = {}
        for (name, dim), count in cut.items():
            by_tensor.setdefault(name, {})[dim] = count
        macs, params, size = 0.0, 0, 0
        for name, tensor in self.tensors.items():
            if name.startswith(prefixes):
                continue
            elements = 1
            lost = by_tensor.get(name, {})
            for dim, length in enumerate(tensor.shape):
                elements *= length - lost.get(dim, 0)
            macs += elements * tensor.macs_per_element
            params += elements * tensor.parameter
            size += elements * tensor.itemsize
        macs += sum(count for name, count in self.fixed.items() if not f"{name}.".startswith(prefixes))
        for module, (tensor, dim, each) in self.products.items():
            if not f"{module}.".startswith(prefixes):
                macs += each * (self.tensors[tensor].shape[dim] - cut.get((tensor, dim), 0))
        return Cost(round(macs), params, size)


def _flops_by_module(model: nn.Module, example: Example) -> dict[str, Counter[str]]:
    """Multiply-adds times two by module ("" is the whole model) and operator, for the whole example batch."""
    args, kwargs = example
    counter = FlopCounterMode(display=False)
    with eval_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(*args, **kwargs)
    counts = {
        name: Counter({str(operator): count for operator, count in by_operator.items()})
        for name, by_operator in counter.get_flop_counts().items()
    }
    root = type(model).__name__
    return {"": counts.get("Global", Counter())} | {
        name.removeprefix(f"{root}."): count for name, count in counts.items() if name.startswith(f"{root}.")
    }


def cost_model(model: nn.Module, example: Example) -> CostModel:
    """The cost model of a network, from one forward pass on an example (see `simprune.example`)."""
    rows = _rows(example)
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
    return CostModel(tensors, fixed, products)


def _rows(example: Example) -> int:
    args, kwargs = example
    return next((len(value) for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)), 1)


def measure_cost(model: nn.Module, example: Example) -> Cost:
    """Cost of a network as it is.

    >>> measure_cost(nn.Linear(4, 3), ((torch.zeros(2, 4),), {}))
    Cost(macs=12, params=15, bytes=60)
    """
    return cost_model(model, example).total()


def latency(model: nn.Module, example: Example, seconds: float = 0.2) -> float:
    """Median seconds of one forward pass on the example, on the model's device, in evaluation mode."""
    args, kwargs = example
    with evaluation(model):
        timer = Timer(
            "model(*args, **kwargs)",
            globals={"model": model, "args": args, "kwargs": kwargs},
            num_threads=torch.get_num_threads(),
        )
        return timer.blocked_autorange(min_run_time=seconds).median
