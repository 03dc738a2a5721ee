"""Which tensors lose entries together when a channel goes: torch-pruning's dependency graph, guarded.

torch-pruning can loop forever, accept wrong indices and skip frozen layers in silence; every call to it is in this
file, bounded and checked.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning.dependency.group import Group

from simprune.batches import eval_mode, first_tensor
from simprune.cost import Example

ROOTS = (nn.modules.conv._ConvNd, nn.Linear)


class NotPrunable(Exception):
    """A structure that cannot be removed safely; the message is the reason."""


@dataclass(frozen=True)
class Slice:
    """Entries that one tensor loses with every channel of a group: `indices[c]` along `dim` for channel c."""

    tensor: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    side: str  # "out": produced here; "in": read here

    @property
    def module(self) -> str:
        return self.tensor.rpartition(".")[0]


class CouplingGraph:
    """torch-pruning's dependency graph of one model, traced on an example input.

    The model's training mode and `requires_grad` are as before afterwards. Build a new one after a module is replaced.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model = model
        self._names = {module: name for name, module in model.named_modules()}
        args, kwargs = example
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)  # the trace follows gradients: frozen layers would be missing
        try:
            with eval_mode(model), torch.enable_grad():
                model(*args, **kwargs)  # an error of the model itself surfaces here, not inside the trace
                self._graph = tp.DependencyGraph().build_dependency(
                    model,
                    example_inputs=args,  # what the trace runs is forward_fn
                    forward_fn=lambda net, _: net(*args, **kwargs),
                    output_transform=first_tensor,
                    verbose=False,
                )
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        widest = max((max(p.shape, default=1) for p in model.parameters()), default=1)
        self._index_cap = 4 * widest
        self._item_cap = 8 * len(self._graph.module2node) + 64

    def roots(self) -> list[str]:
        """Names of the layers whose output channels can be asked for, in order of definition."""
        return [name for module, name in self._names.items() if isinstance(module, ROOTS)]

    def width(self, layer: str) -> int:
        """Number of output channels of a layer now."""
        module = self.model.get_submodule(layer)
        return int(self._pruner(layer).get_out_channels(module))

    def _pruner(self, layer: str) -> Any:
        module = self.model.get_submodule(layer)
        if module not in self._graph.module2node:
            raise NotPrunable("it takes no part in the forward pass, or the trace does not see it")
        return self._graph.get_pruner_of_module(module)

    def group(self, layer: str, indices: Sequence[int]) -> Any:
        """torch-pruning's group for removing exactly these output channels of a layer."""
        width = self.width(layer)
        if not indices or sorted(set(indices)) != list(indices) or not all(0 <= i < width for i in indices):
            raise ValueError(f"{layer}: expected sorted distinct channels in [0, {width}); got {list(indices)}")
        pruner = self._pruner(layer)
        with self._bounded():
            return self._graph.get_pruning_group(
                self.model.get_submodule(layer), pruner.prune_out_channels, list(indices)
            )

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """Cap the size of a group while torch-pruning builds it: cyclic mappings would never end."""
        add_dep, items = Group.add_dep, 0
        item_cap, index_cap = (
            2 * self._item_cap,
            self._index_cap,
        )  # each item is added twice: found, then merged

        def counted(self: Group, dep: Any, idxs: Any) -> None:
            nonlocal items
            items += 1
            if items > item_cap or len(idxs) > index_cap:
                raise NotPrunable("its channels are coupled through a cyclic or exploding index mapping")
            add_dep(self, dep, idxs)

        Group.add_dep = counted
        try:
            yield
        finally:
            Group.add_dep = add_dep

    def slices(self, layer: str) -> tuple[Slice, ...]:
        """What every channel of a layer's group takes with it: tensors, dimensions, indices per channel."""
        width = self.width(layer)
        found: dict[tuple[str, int, str], Slice] = {}
        for item in self.group(layer, range(width)).items:
            for part in self._slices_of(item, width):
                key = (part.tensor, part.dim, part.side)
                found[key] = part
        return tuple(found.values())

    def _slices_of(self, item: Any, width: int) -> Iterator[Slice]:
        target, handler = item.dep.target, item.dep.handler
        side = "out" if self._graph.is_out_channel_pruning_fn(handler) else "in"
        indices: list[list[int]] = [[] for _ in range(width)]
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            indices[root].append(int(index))
        by_channel = tuple(map(tuple, indices))
        if isinstance(target.module, nn.Parameter):
            yield Slice(self._graph._param_to_name[target.module], target.pruning_dim, by_channel, side)
        elif target.module in self._names:
            yield from self._cut_tensors(target.module, handler, by_channel, side)

    def _cut_tensors(
        self, module: nn.Module, handler: Any, by_channel: tuple[tuple[int, ...], ...], side: str
    ) -> Iterator[Slice]:
        """Remove the first channel from a copy of one layer and see which tensors lose how much."""
        first = next((indices for indices in by_channel if indices), None)
        if first is None:
            return
        trial = copy.deepcopy(module)
        before = _shapes(module)
        handler(trial, list(first))
        prefix = f"{self._names[module]}." if self._names[module] else ""
        for name, shape in _shapes(trial).items():
            for dim, (old, new) in enumerate(zip(before[name], shape, strict=True)):
                if old != new:
                    yield Slice(prefix + name, dim, by_channel, side)

    def prune(self, layer: str, indices: Sequence[int]) -> None:
        """Remove output channels of a layer, and everything coupled to them, from the model itself."""
        group = self.group(layer, indices)
        if not self._graph.check_pruning_group(group):
            raise NotPrunable(f"removing {len(indices)} channels of {layer} would leave a coupled layer empty")
        trainable = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        tied = _tied(self.model)
        group.prune()
        _tie_again(self.model, tied)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(trainable[name])


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


def _tied(model: nn.Module) -> list[list[str]]:
    """Names that share one parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie_again(model: nn.Module, tied: list[list[str]]) -> None:
    """Pruning makes new parameters: share them again where they were shared."""
    for first, *others in tied:
        keep = model.get_parameter(first)
        for name in others:
            if model.get_parameter(name).shape != keep.shape:
                raise NotPrunable(f"{first} and {name} are tied, and only one of them would lose channels")
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, keep)
