"""Which tensors lose entries together when a channel goes, and their removal.

torch-pruning's graph says it (`simprune.trace.guarded`). Channels that are split into parts or moved, and networks that
it cannot trace, are followed by `simprune.trace.flow` instead.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from simprune.core.copies import sharing
from simprune.core.cost import Example
from simprune.core.structures import Coupling, NotPrunable, Slice
from simprune.trace.bypass import put
from simprune.trace.cut import cut, stored
from simprune.trace.explicit import make_explicit
from simprune.trace.flow import ChannelFlow
from simprune.trace.guarded import UNFOLLOWED, GuardedGraph
from simprune.trace.layers import is_conv1d
from simprune.trace.pruners import pruners
from simprune.trace.rewritten import rewritten
from simprune.trace.stated import restate_lengths, restate_widths

Channels = list[set[int]]  # entries that belong to every channel
Key = tuple[str, int, str]  # a tensor, one of its dimensions, and a side
ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
# Entries are collected by tensor, dimension and side: "out" where a layer produces the channels, "in" where it reads
# them. Two more keys in the same table are no sides of a tensor:
TIED = "tied"  # channels with the same entry here must be removed together (one of every group of a grouped layer)
INPUT = "input"  # entries of the input of a grouped convolution, whose weight numbers them per group


class CouplingGraph:
    """torch-pruning's dependency graph of one model, traced on an example input, and the flow of channels beside it.

    Training mode and `requires_grad` of the model are as before afterwards. A graph is out of date once a module of the
    model is replaced.

    Args:
        model: the network.
        example: its arguments.

    An error of the model itself is passed on unchanged. Where torch-pruning cannot trace the model, all channels are
    followed without it.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self._example = model, example
        self._names = {module: name for name, module in model.named_modules()}
        by_type, self._sides, self._hidden = pruners(model)
        self._cuts: dict[tuple, list[tuple[str, int]]] = {}  # by class and sizes of a layer, and the side that is cut
        self._traced_items: dict[str, list[tuple[Any, Any]]] = {}  # of layers whose group has just been built
        self._couplings: dict[str, Coupling] = {}  # of layers that were asked for
        self._graph = GuardedGraph(model, example, by_type, [*self._sides])

    def roots(self) -> list[str]:
        """Names of the layers whose output channels can be removed, in order of definition."""
        return [name for name in self._names.values() if name and self.is_root(name)]

    def is_root(self, layer: str) -> bool:
        """Whether the outputs of a layer are channels; those of attention's projections are heads."""
        module = self.model.get_submodule(layer)
        return (isinstance(module, ROOTS) or is_conv1d(module)) and layer not in self._hidden

    def width(self, layer: str) -> int:
        """Number of output channels of a layer, as the model is now; NotPrunable where torch-pruning knows none."""
        module = self.model.get_submodule(layer)
        return int(self._pruner(layer).get_out_channels(module))

    def _pruner(self, layer: str) -> Any:
        module = self.model.get_submodule(layer)
        if layer in self._hidden:
            raise NotPrunable("its outputs are attention heads, which go as heads")
        if not self._graph.sees(module) and not self._flow.runs(module):
            raise NotPrunable("it takes no part in the forward pass, or the trace does not see it")
        return self._graph.pruner(module)

    def refusal(self, layer: str) -> str | None:
        """What keeps the channels of a layer, as far as the flow knows; None where nothing does."""
        return self._flow.refusal(self.model.get_submodule(layer))

    @property
    def mixers(self) -> dict[str, tuple[str, int]]:
        """The weights of layers that mix positions, and where the channels lie that are their own positions."""
        return self._flow.mixers()

    @cached_property
    def _flow(self) -> ChannelFlow:
        return ChannelFlow(self.model, self._example, self._sides)

    @cached_property
    def _overlooks(self) -> bool:
        """Whether layers run that torch-pruning does not see, such as a branch that no output depends on."""
        layers = [self.model.get_submodule(layer) for layer in self.roots()]
        return any(self._flow.runs(layer) and not self._graph.sees(layer) for layer in layers)

    def _is_followed(self, layer: str) -> bool:
        """Whether the flow says what goes with a layer's channels, and not torch-pruning.

        That is in networks that split channels into parts or move them, or compute what no output depends on, and where
        torch-pruning fails. NotPrunable, with the reason, where neither can say it.
        """
        module, width = self.model.get_submodule(layer), self.width(layer)
        reason = self._flow.refusal(module)
        if reason is None and (not self._graph.traced or self._flow.rearranges or self._overlooks):
            return True
        try:
            if self._graph.traced:
                self._traced_items[layer] = self._graph.group(module, range(width))
                return False
        except NotPrunable as of_torch_pruning:
            reason = reason or (None if self._flow.runs(module) else str(of_torch_pruning))
        if reason is not None:
            raise NotPrunable(reason)
        return True

    def _check(self, layer: str, indices: Sequence[int]) -> None:
        width = self.width(layer)
        if not indices or sorted(set(indices)) != list(indices) or not all(0 <= i < width for i in indices):
            raise ValueError(f"{layer}: expected sorted distinct channels in [0, {width}); got {list(indices)}")

    def coupling(self, layer: str) -> Coupling:
        """The units of a layer's output channels, and the entries of tensors that are removed with every unit.

        Raises:
            NotPrunable: with the reason, where the channels cannot be removed safely.
        """
        if layer not in self._couplings:
            self._couplings[layer] = self._coupling(layer)
        return self._couplings[layer]

    def _coupling(self, layer: str) -> Coupling:
        width = self.width(layer)
        entries: dict[Key, Channels] = defaultdict(lambda: [set() for _ in range(width)])
        by_flow = self._is_followed(layer)
        for target, dim, side, by_channel in self._items(layer, by_flow):
            for key, per_channel in self._entries_of(target, dim, side, by_channel, by_flow):
                for known, more in zip(entries[key], per_channel, strict=True):
                    known |= more
        units = _units(width, entries.values())

        def of_units(by_channel: Channels | None) -> tuple[tuple[int, ...], ...]:
            sets = (by_channel[unit[0]].union(*(by_channel[c] for c in unit[1:])) for unit in units if by_channel)
            return tuple(tuple(sorted(entries)) for entries in sets)

        slices = tuple(
            Slice(tensor, dim, of_units(sets), side, of_units(entries.get((tensor, dim, INPUT))))
            for (tensor, dim, side), sets in entries.items()
            if side in ("out", "in")
        )
        return Coupling(units, slices)

    def _items(self, layer: str, by_flow: bool) -> Iterator[tuple[nn.Module | str, int, str, Channels]]:
        """(module, or name of a parameter or buffer; its dimension; side; entries of every channel)."""
        if by_flow:
            yield from self._flow.items(self.model.get_submodule(layer))
            return
        width = self.width(layer)
        for dep, indices in self._traced_items.pop(layer):
            module = dep.target.module
            if module not in self._names and not isinstance(module, nn.Parameter):
                continue  # an operator between layers
            by_channel: Channels = [set() for _ in range(width)]
            for index in indices:
                if index.root_idx is None:
                    raise NotPrunable(UNFOLLOWED)
                by_channel[index.root_idx].add(int(index.idx))
            side = "out" if self._graph.is_output(dep) else "in"
            if isinstance(module, nn.Parameter):
                yield self._graph.name_of(module), dep.target.pruning_dim, "out", by_channel
            else:
                yield module, 0, side, by_channel

    def _handler(self, target: nn.Module | str, side: str) -> Any:
        """torch-pruning's function that cuts one side of a module; None for a parameter or buffer, which `cut` cuts."""
        if isinstance(target, str):
            return None
        pruner: Any = self._graph.pruner(target)
        return pruner.prune_out_channels if side == "out" else pruner.prune_in_channels

    def _entries_of(
        self, module: nn.Module | str, dim: int, side: str, by_channel: Channels, by_flow: bool
    ) -> Iterator[tuple[Key, Channels]]:
        """(tensor, dimension, side) and the entries of every channel there, for one item of a group."""
        if isinstance(module, str):
            yield (module, dim, side), by_channel
        elif module in self._sides:
            for tensor, dim in self._sides[module][side]:
                yield (tensor, dim, side), by_channel
        else:
            prefix = f"{self._names[module]}." if self._names[module] else ""
            groups, length = _channel_groups(module, side)
            local = [{index % length for index in indices} for indices in by_channel] if groups > 1 else by_channel
            if groups > 1 and not by_flow:  # as many channels stay in every group; the flow has tied their nth ones
                yield (prefix, 0, TIED), local
            for name, dim in self._cut_tensors(module, side, by_channel):
                if groups > 1 and side == "in":
                    yield (prefix + name, dim, INPUT), by_channel
                yield (prefix + name, dim, side), local if side == "in" else by_channel

    def _cut_tensors(self, module: nn.Module, side: str, by_channel: Channels) -> list[tuple[str, int]]:
        """Tensors of one layer, with dimensions, that shrink when its first channel goes.

        It is tried on a copy, once for all layers of torch of the same class and sizes.
        """
        first = next((indices for indices in by_channel if indices), None)
        if first is None:
            return []
        remedy = rewritten(module, self._names[module])
        if remedy is not None:
            raise NotPrunable(remedy)
        own = not type(module).__module__.startswith("torch.nn.")
        shapes = _shapes(module)
        alike = (module if own else type(module), side, "" if own else module.extra_repr(), tuple(shapes.items()))
        if alike not in self._cuts:
            self._cuts[alike] = self._tried_cuts(module, side, sorted(first), shapes)
        return self._cuts[alike]

    def _tried_cuts(
        self, module: nn.Module, side: str, indices: Sequence[int], shapes: dict[str, tuple[int, ...]]
    ) -> list[tuple[str, int]]:
        unknown = f"no rule is known that removes channels of {self._names[module]}"
        trial = sharing(module).to("meta")  # shapes are all that is looked at
        try:
            self._handler(module, side)(trial, indices)
        except Exception:  # any failure inside torch-pruning means the same: it cannot cut this layer
            raise NotPrunable(f"{unknown}, coupled to it") from None
        cuts = []
        for name, shape in _shapes(trial).items():
            if len(shape) != len(shapes[name]):
                raise NotPrunable(f"{unknown}, coupled to it")
            cuts += [(name, dim) for dim, size in enumerate(shape) if size != shapes[name][dim]]
        return cuts

    def prune(self, edits: Sequence[tuple[str, Sequence[int]]], copy: nn.Module | None = None) -> None:
        """Remove output channels of layers, and everything coupled to them, from the model itself or a copy of it.

        All edits count channels as they are now. What they remove is collected first, and every tensor is cut once.
        The graph is out of date afterwards, unless a copy was cut.

        Args:
            edits: names of layers, with the channels to remove, sorted and distinct.
            copy: that is cut in place of the model.

        Raises:
            NotPrunable: where a coupled layer would lose all channels, or only one of two tied tensors would shrink.
            ValueError: for other indices.
        """
        gone: dict[tuple[nn.Module | str, int, str], set[int]] = defaultdict(set)
        followed: dict[tuple[nn.Module | str, int, str], set[int]] = {}  # what the flow says, of that
        changed: list[tuple[list[str], int, int]] = []
        for layer, indices in edits:
            self._check(layer, indices)
            by_flow, names = self._is_followed(layer), []
            for target, dim, side, by_channel in self._items(layer, by_flow):
                gone[(target, dim, side)].update(*(by_channel[channel] for channel in indices))
                names.append(target if isinstance(target, str) else self._names[target])
                if by_flow:
                    followed[(target, dim, side)] = gone[(target, dim, side)]
            changed.append((names, self.width(layer), self.width(layer) - len(indices)))
        lengths = self._flow.lengths(followed) if followed else {}
        self._refuse_empty(gone, [layer for layer, _ in edits])
        model = self.model if copy is None else copy
        with _same_parameters(model):
            for (target, dim, side), entries in gone.items():
                if entries:
                    self._cut(model, target, dim, side, sorted(entries))
        restate_widths(model, changed, {self._names[module] for module in self._sides})
        for owner, sizes in lengths.items():
            restate_lengths(model.get_submodule(owner), sizes)

    def _cut(self, model: nn.Module, target: nn.Module | str, dim: int, side: str, entries: Sequence[int]) -> None:
        """Cut one side of a module, or a parameter or buffer, in a model with the names of this one."""
        if isinstance(target, str):
            cut(model, target, dim, entries)
            return
        module = model.get_submodule(self._names[target])
        if target in self._sides:
            for tensor, along in self._sides[target][side]:
                cut(model, tensor, along, entries)
            if isinstance(module, nn.MultiheadAttention):
                make_explicit(module)
        else:
            self._handler(target, side)(module, entries)

    def _refuse_empty(self, gone: Mapping[tuple[nn.Module | str, int, str], set[int]], layers: Sequence[str]) -> None:
        """NotPrunable where a module, parameter or buffer would lose all that it has on a side."""
        for (target, dim, side), entries in gone.items():
            if isinstance(target, str):
                name, size = target, stored(self.model, target).shape[dim]
            else:
                pruner: Any = self._graph.pruner(target)
                sizes = pruner.get_out_channels if side == "out" else pruner.get_in_channels
                name, size = self._names[target], sizes(target)
            if size is not None and len(entries) >= size:
                raise NotPrunable(f"removing channels of {', '.join(layers)} would leave {name} empty")


def _channel_groups(module: nn.Module, side: str) -> tuple[int, int]:
    """Number of channel groups of a layer on one side, and of channels in a group; (1, 1) if groups do not matter."""
    if isinstance(module, nn.modules.conv._ConvNd):
        channels = module.in_channels if side == "in" else module.out_channels
        depthwise = module.groups == module.out_channels == module.in_channels
        return (1, channels) if depthwise else (module.groups, channels // module.groups)
    if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
        return module.num_groups, module.num_channels // module.num_groups
    return 1, 1


def _units(width: int, tensors: Iterable[Channels]) -> tuple[tuple[int, ...], ...]:
    """Sets of channels that are connected by shared entries, in order of their first channel.

    >>> _units(3, [[{0}, {1}, {0}]])
    ((0, 2), (1,))
    """
    links = []  # between a channel and the first channel with the same entry
    for by_channel in tensors:
        first: dict[int, int] = {}
        for channel, indices in enumerate(by_channel):
            links += [(first.setdefault(index, channel), channel) for index in indices]
    rows, columns = np.array(links, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(width, width))
    units: dict[int, list[int]] = {}
    for channel, label in enumerate(connected_components(graph, directed=False)[1]):
        units.setdefault(label, []).append(channel)
    return tuple(map(tuple, units.values()))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


@contextmanager
def _same_parameters(model: nn.Module) -> Iterator[None]:
    """After the block, parameters require gradients as before, and tied ones are one parameter again."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    names: dict[nn.Parameter, str] = {}
    shared = {n: names.setdefault(p, n) for n, p in model.named_parameters(remove_duplicate=False)}
    yield
    for name, first in shared.items():  # torch-pruning has replaced every parameter by one of its own
        old, new = model.get_parameter(name), model.get_parameter(first)
        if old.shape != new.shape:
            raise NotPrunable(f"{first} and {name} are tied, and only one of them would lose channels")
        put(model, name, new)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
