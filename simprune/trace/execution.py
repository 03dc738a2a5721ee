"""Every call of a layer in order of execution, the BatchNorms behind it, and where else its weight is used."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from simprune.core.batches import first_tensor, tensors_in
from simprune.core.cost import Example
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.layers import PLAIN, can_be_fitted


@dataclass(frozen=True)
class Execution:
    """What one forward pass shows of convolutions and linear layers.

    `calls`: their names, once per call, in order of execution. `means`: layer -> the BatchNorms whose running means can
    hold the layer's intercept: they alone read what the layer gives, in all its calls, and read nothing else.
    `elsewhere`: layer -> the other modules that hold or compute with its weight or bias; "" is the model itself.
    `lent`: layer -> the BatchNorms that read its output, where other readers or other layers keep their means as they
    are. `filters`: convolutions in channel groups that run once, and whose weight nobody else uses,
    with the BatchNorms behind them, as in `means`. `sequence`: `calls`, and those of convolutions in channel groups.
    """

    calls: tuple[str, ...]
    means: Mapping[str, tuple[str, ...]]
    elsewhere: Mapping[str, tuple[str, ...]]
    lent: Mapping[str, tuple[str, ...]]
    filters: Mapping[str, tuple[str, ...]]
    sequence: tuple[str, ...]

    @cached_property
    def order(self) -> list[str]:
        """Layers that run once, in order of execution."""
        counts = Counter(self.calls)
        return [name for name in self.calls if counts[name] == 1]

    @cached_property
    def normalisers(self) -> dict[str, str]:
        """Layer -> BatchNorm, where the layer's only reader is a BatchNorm that reads nothing else."""
        return {layer: norms[0] for layer, norms in self.means.items() if len(norms) == 1}


def execution(model: nn.Module, example: Example) -> Execution:
    """Watch the layers of a model in one forward pass.

    >>> seen = execution(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), ((torch.zeros(1, 3, 2, 2),), {}))
    >>> seen.order, seen.normalisers
    (['0'], {'0': '1'})
    """
    watch = _Watch(model)
    args, kwargs = example
    with eval_mode(model), torch.no_grad(), watch.watching(), watch:
        model(*args, **kwargs)
    return watch.result()


def is_filter(module: nn.Module) -> bool:
    """Whether a module is a convolution in channel groups, as a depthwise one, that computes nothing else."""
    plain = type(module).forward in PLAIN and "weight" in module._parameters and "bias" not in vars(module)
    return plain and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1


class _Watch(TorchFunctionMode):
    """Sees every function of torch that gets a parameter, or what a layer gave, and the module that calls it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.modules = dict(model.named_modules())
        self.layers = {name for name, module in self.modules.items() if can_be_fitted(module)}
        self.filters = {name for name, module in self.modules.items() if is_filter(module)}
        self.norms = {name for name, module in self.modules.items() if isinstance(module, _BatchNorm)}
        self.running: list[str] = []  # modules whose forward is under way, the innermost last
        self.calls: list[str] = []
        self.runs: Counter[str] = Counter()  # of modules
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # id -> layer, its output; a tensor that lives keeps its id
        self.readers: dict[str, list[str]] = {}  # layer -> the innermost module at every use of what it gave
        self.users: dict[int, set[str]] = {}  # id of a parameter -> the innermost modules that compute with it
        self.holders: dict[int, set[str]] = {}  # id of a parameter -> modules that hold it, or one in the same memory
        memory: dict[int, set[str]] = {}
        for name, module in self.modules.items():
            for parameter in module._parameters.values():
                if parameter is not None:
                    pointer = parameter.data_ptr() or id(parameter)  # without memory (meta), every tensor for itself
                    self.holders[id(parameter)] = memory.setdefault(pointer, set())
                    memory[pointer].add(name)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, hooks follow which module runs."""
        seen = {
            name: module
            for name, module in self.modules.items()
            if name and (name in self.norms or next(module.parameters(), None) is not None)
        }
        befores = [(module, partial(self._enter, name)) for name, module in seen.items()]
        afters = [(module, partial(self._leave, name)) for name, module in seen.items()]
        with hooks(befores, afters):
            yield

    def _enter(self, name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        self.running.append(name)
        self.runs[name] += 1
        if name in self.norms and id(first_tensor((args, kwargs))) in self.outputs:
            self.readers[self.outputs[id(first_tensor((args, kwargs)))][0]].append(name)

    def _leave(self, name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.running.pop()
        if name in self.layers | self.filters and isinstance(output, Tensor):
            self.calls.append(name)
            self.outputs[id(output)] = name, output
            self.readers.setdefault(name, [])

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if first_tensor(result) is not None:  # more than the shape or the type was read
            here = self.running[-1] if self.running else ""
            for value in tensors_in((args, kwargs or {})):
                if id(value) in self.holders:
                    self.users.setdefault(id(value), set()).add(here)
                if id(value) in self.outputs and here not in self.norms:  # what a BatchNorm reads is known
                    self.readers[self.outputs[id(value)][0]].append(here)
        return result

    def result(self) -> Execution:
        """What was seen."""
        counts = Counter(self.calls)
        means, lent = {}, {}
        for layer, readers in self.readers.items():
            behind = tuple(dict.fromkeys(name for name in readers if name in self.norms))
            alone = self.norms.issuperset(readers) and len(readers) == counts[layer]
            own = all(self.runs[name] == readers.count(name) for name in behind)
            if behind:
                (means if alone and own else lent)[layer] = behind
        elsewhere = {}
        for name in self.layers.intersection(self.calls):
            if others := self._users(name) - {name}:
                elsewhere[name] = tuple(sorted(others))
        once = (name for name in self.filters if counts[name] == 1)
        filters = {name: means.pop(name, ()) for name in once if self._users(name) == {name}}
        calls = tuple(name for name in self.calls if name in self.layers)
        means, lent = ({name: part[name] for name in part if name in self.layers} for part in (means, lent))
        return Execution(calls, means, elsewhere, lent, filters, tuple(self.calls))

    def _users(self, name: str) -> set[str]:
        """The modules that hold or compute with the weight or the bias of a module."""
        module = self.modules[name]
        held = [p for key in ("weight", "bias") if (p := module._parameters.get(key)) is not None]
        return {user for p in held for user in self.holders[id(p)] | self.users.get(id(p), set())}
