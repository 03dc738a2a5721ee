"""What a model costs: multiply-adds, parameters, bytes, measured latency; and what is left of them after edits.

One multiply-add is one mac (FLOPs = 2 x macs), counted per input row by torch's FlopCounterMode with attention
in plain matrix products; BatchNorm, activations and other elementwise work count nothing.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from simprune.attention import attentions, is_conv1d
from simprune.batches import eval_mode, evaluation, first_tensor, requiring

Example = tuple[tuple, dict]
Key = tuple[str, int]  # a tensor and one of its dimensions
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
class Stream:
    """What runs through a module that returns what has its input's shape.

    `positions` per input; `reader` is the tensor and dimension, of a layer inside, along which the channels lie.
    """

    channels: int
    positions: float
    itemsize: int
    reader: Key | None


@dataclass(frozen=True)
class Term:
    """A product of lengths, any of which may lose entries, times the macs, params and bytes of one element.

    It goes with every module around `owner`. What stands in for the block `replaces` is there only when that is gone.
    """

    owner: str
    factors: tuple[tuple[int, Key | None], ...]
    each: tuple[float, int, int]
    replaces: str = ""

    def dropped(self, blocks: Collection[str]) -> bool:
        """Whether it is gone, or not yet there, when the modules `blocks` are gone whole."""
        around = any(f"{self.owner}.".startswith(f"{block}.") for block in blocks if block != self.replaces)
        return around or (self.replaces != "" and self.replaces not in blocks)


@dataclass(frozen=True)
class CostModel:
    """Exact cost of a model and of what is left after slices of tensors or whole modules are removed.

    The macs of a convolution or linear layer follow the number of elements of its weight, because every element
    is used once per output position; `fixed` macs (matrix products without a weight) go only with their module. The
    products of queries, keys and values follow the number of entries of the heads: `products` names, for each
    attention module, the tensor and dimension along which the heads lie, and the macs per entry. `streams` is what
    stand-ins of blocks have to carry.
    """

    tensors: Mapping[str, TensorCost]
    fixed: Mapping[str, int]
    products: Mapping[str, tuple[str, int, float]] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)

    def total(self) -> Cost:
        return self.after()

    def after(
        self,
        cut: Mapping[Key, int] | None = None,
        dropped: Collection[str] = (),
        stand_ins: Mapping[str, str] | None = None,
    ) -> Cost:
        """Cost when `cut[tensor, dim]` entries are gone from tensors and the modules `dropped` are gone whole.

        `stand_ins`: what is put in place of a dropped module: "linear", "mean" or another, which costs nothing.
        """
        cut = cut or {}
        sums = [0.0, 0, 0]
        for term in self.terms(stand_ins or {}):
            if not term.dropped(dropped):
                elements = math.prod(length - cut.get(key, 0) if key else length for length, key in term.factors)
                sums = [old + elements * each for old, each in zip(sums, term.each, strict=True)]
        return Cost(round(sums[0]), int(sums[1]), int(sums[2]))

    def terms(self, stand_ins: Mapping[str, str]) -> Iterator[Term]:
        """All that costs something, for blocks that would be replaced as `stand_ins` says."""
        for name, tensor in self.tensors.items():
            factors = tuple((length, (name, dim)) for dim, length in enumerate(tensor.shape))
            yield Term(name, factors, (tensor.macs_per_element, int(tensor.parameter), tensor.itemsize))
        for name, macs in self.fixed.items():
            yield Term(name, (), (macs, 0, 0))
        for name, (tensor, dim, each) in self.products.items():
            yield Term(name, ((self.tensors[tensor].shape[dim], (tensor, dim)),), (each, 0, 0))
        for name, replace in stand_ins.items():
            if replace in ("linear", "mean"):
                if name not in self.streams:
                    raise ValueError(f"{name}: a {replace} replacement needs one input and output of the same shape")
                stream = self.streams[name]
                width = (stream.channels, stream.reader)
                yield Term(name, (width,), (0, 1, stream.itemsize), replaces=name)  # a bias, or the mean itself
                if replace == "linear":
                    yield Term(name, (width, width), (stream.positions, 1, stream.itemsize), replaces=name)


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
        self.found: dict[str, Stream] = {}
        self._rows = rows
        self._open: dict[str, list[Tensor]] = {}  # modules that are running: the tensors they got
        self._readers: dict[tuple[str, int], Key] = {}
        self.handles = []
        for name, module in model.named_modules():
            if name and next(module.children(), None) is not None:
                self.handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                self.handles.append(module.register_forward_hook(self._leave(name)))
            elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
                dim = int(weight.ndim > 1) if not is_conv1d(module) else 0
                self.handles.append(module.register_forward_pre_hook(self._read((f"{name}.weight", dim))))

    def _enter(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
            self._open[name] = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)]

        return see

    def _read(self, key: Key) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple) -> None:
            for name, given in self._open.items():
                for place, value in enumerate(given):
                    if args and args[0] is value:
                        self._readers.setdefault((name, place), key)

        return see

    def _leave(self, name: str) -> Callable[..., None]:
        def see(_: nn.Module, __: tuple, output: Any) -> None:
            made, given = first_tensor(output), self._open.pop(name, [])
            place = next((i for i, x in enumerate(given) if made is not None and x.shape == made.shape), None)
            if made is None or place is None or made.ndim not in (2, 3, 4):
                return
            channels = made.shape[1 if made.ndim == 4 else -1]
            reader = self._readers.get((name, place))
            self.found[name] = Stream(channels, made.numel() / channels / self._rows, made.element_size(), reader)

        return see


def cost_model(model: nn.Module, example: Example) -> CostModel:
    """The cost model of a network, from one forward pass on an example (see `simprune.example`)."""
    rows = rows_of(example)
    streams = _Streams(model, rows)
    try:
        flops = _flops_by_module(model, example)
    finally:
        for handle in streams.handles:
            handle.remove()
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


def rows_of(example: Example) -> int:
    """Number of inputs in an example: the length of its first tensor."""
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
