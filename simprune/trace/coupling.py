"""Which tensors lose entries together when a channel goes: torch-pruning's dependency graph, guarded.

torch-pruning can loop forever, accept wrong indices and skip frozen layers in silence; every call to it is in this
file, bounded and checked (`simprune.trace.pruners` holds the rules that it calls back). Channels that are split into
parts or moved, and networks that it cannot trace, are followed by `simprune.trace.flow` instead.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch_pruning.dependency import constants, index_mapping
from torch_pruning.dependency.group import Group

from simprune.core.batches import all_tensors
from simprune.core.copies import sharing
from simprune.core.cost import Example
from simprune.core.structures import Coupling, NotPrunable, Slice
from simprune.trace.bypass import put
from simprune.trace.context import eval_mode, requiring
from simprune.trace.cut import cut
from simprune.trace.explicit import make_explicit
from simprune.trace.flow import ChannelFlow
from simprune.trace.layers import is_conv1d
from simprune.trace.pruners import opaque, pruners
from simprune.trace.rewritten import rewritten

Channels = list[set[int]]  # entries that belong to every channel
Key = tuple[str, int, str]  # a tensor, one of its dimensions, and a side
ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
# Entries are collected by tensor, dimension and side: "out" where a layer produces the channels, "in" where it reads
# them. Two more keys in the same table are no sides of a tensor:
TIED = "tied"  # channels with the same entry here must be removed together (one of every group of a grouped layer)
INPUT = "input"  # entries of the input of a grouped convolution, whose weight numbers them per group
STEPS = 8  # through operators, per module, by which torch-pruning may look for a width
# Attributes under which composite modules may state their number of channels.
STATED_WIDTHS = ("hidden_dim", "hidden_size", "embed_dim", "embedding_dim", "d_model", "num_features", "width")
UNFOLLOWED = "its channels cannot be followed to the layers that read them"


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
        args, kwargs = example
        by_type, self._sides, self._hidden = pruners(model)
        self._cuts: dict[tuple, list[tuple[str, int]]] = {}  # by class and sizes of a layer, and the side that is cut
        self._traced_items: dict[str, list[tuple[Any, Any]]] = {}  # of layers whose group has just been built
        self._traced = False  # whether torch-pruning can trace the network
        self._graph = tp.DependencyGraph()
        for kind, pruner in by_type.items():
            self._graph.register_customized_layer(kind, pruner)
        # torch-pruning traces by gradients, so all parameters require them: a frozen layer would be missing
        with requiring(model, *model.parameters()), eval_mode(model), torch.enable_grad():
            model(*args, **kwargs)  # an error of the model itself is raised here, not inside the trace
            with _without_new_hooks(model), suppress(Exception):  # of any type: the model alone has just run
                with opaque([*self._sides, *_scalar_activations(model)]), _as_deep_as(len(self._names)):
                    self._graph.build_dependency(
                        model,
                        example_inputs=args,  # unused, but required: forward_fn has its arguments
                        forward_fn=lambda net, _: net(*args, **kwargs),
                        output_transform=_with_graph,
                        verbose=False,
                    )
                self._traced = True
        widest = max((max(p.shape, default=1) for p in model.parameters()), default=1)
        self._index_cap = 4 * widest
        self._item_cap = 8 * len(self._graph.module2node) + 64 if self._traced else 0

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
        if not (self._traced and module in self._graph.module2node) and not self._flow.runs(module):
            raise NotPrunable("it takes no part in the forward pass, or the trace does not see it")
        return self._graph.get_pruner_of_module(module)

    def refusal(self, layer: str) -> str | None:
        """What keeps the channels of a layer, as far as the flow knows; None where nothing does."""
        return self._flow.refusal(self.model.get_submodule(layer))

    @cached_property
    def _flow(self) -> ChannelFlow:
        return ChannelFlow(self.model, self._example, self._sides)

    @cached_property
    def _overlooks(self) -> bool:
        """Whether layers run that torch-pruning does not see, such as a branch that no output depends on."""
        layers = [self.model.get_submodule(layer) for layer in self.roots()]
        return any(self._flow.runs(layer) and layer not in self._graph.module2node for layer in layers)

    def _is_followed(self, layer: str) -> bool:
        """Whether the flow says what goes with a layer's channels, and not torch-pruning.

        That is in networks that split channels into parts or move them, or compute what no output depends on, and where
        torch-pruning fails. NotPrunable, with the reason, where neither can say it.
        """
        module, width = self.model.get_submodule(layer), self.width(layer)
        reason = self._flow.refusal(module)
        if reason is None and (not self._traced or self._flow.rearranges or self._overlooks):
            return True
        try:
            if self._traced:
                self._traced_items[layer] = self._group(layer, range(width))
                return False
        except NotPrunable as of_torch_pruning:
            reason = reason or (None if self._flow.runs(module) else str(of_torch_pruning))
        if reason is not None:
            raise NotPrunable(reason)
        return True

    def _group(self, layer: str, indices: Sequence[int]) -> list[tuple[Any, list[Any]]]:
        """The items of torch-pruning's group for removing these output channels: what is cut, and where.

        They are not merged, because merging loses which channels share an entry.
        """
        module, pruner = self.model.get_submodule(layer), self._pruner(layer)
        with self._bounded() as items:
            self._graph.get_pruning_group(module, pruner.prune_out_channels, list(indices))
        return items

    def _check(self, layer: str, indices: Sequence[int]) -> None:
        width = self.width(layer)
        if not indices or sorted(set(indices)) != list(indices) or not all(0 <= i < width for i in indices):
            raise ValueError(f"{layer}: expected sorted distinct channels in [0, {width}); got {list(indices)}")

    @contextmanager
    def _bounded(self) -> Iterator[list[tuple[Any, Any]]]:
        """Limit the size of the groups that torch-pruning builds within the block; yields the items as they are added.

        With a cyclic mapping of indices torch-pruning would add items forever. It also asks for every new item whether
        the group has it; a set answers at once, where torch-pruning's search through all items would take minutes
        before the limit is reached. Items are not merged, and indices not mapped anew for every group, since nothing is
        cut while a graph is in use: both would take time as the square of the number of layers.
        """
        add_dep, has_pruning_op, merge, items = Group.add_dep, Group.has_pruning_op, Group.add_and_merge, []
        known: set[tuple[Any, Any, tuple]] = set()
        item_cap, index_cap, update = 2 * self._item_cap, self._index_cap, index_mapping.update_index_mapping

        def counted(self: Group, dep: Any, idxs: Any) -> None:
            items.append((dep, idxs))
            if len(items) > item_cap or len(idxs) > index_cap:
                raise NotPrunable("its channels are coupled through a cyclic or exploding index mapping")
            known.add((dep.target, dep.handler, tuple(idxs)))
            add_dep(self, dep, idxs)

        Group.add_dep = counted
        Group.has_pruning_op = lambda self, dep, idxs: (dep.target, dep.handler, tuple(idxs)) in known
        Group.add_and_merge = lambda self, dep, idxs: None
        index_mapping.update_index_mapping = lambda graph: None
        try:
            yield items
        except (IndexError, KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
            raise NotPrunable(UNFOLLOWED) from None
        finally:
            Group.add_dep, Group.has_pruning_op, Group.add_and_merge = add_dep, has_pruning_op, merge
            index_mapping.update_index_mapping = update

    def coupling(self, layer: str) -> Coupling:
        """The units of a layer's output channels, and the entries of tensors that are removed with every unit.

        Raises:
            NotPrunable: with the reason, where the channels cannot be removed safely.
        """
        width = self.width(layer)
        entries: dict[Key, Channels] = defaultdict(lambda: [set() for _ in range(width)])
        for target, dim, side, by_channel in self._items(layer, self._is_followed(layer)):
            for key, per_channel in self._entries_of(target, dim, side, by_channel):
                for known, more in zip(entries[key], per_channel, strict=True):
                    known |= more
        units = _units(width, entries.values())

        def of_units(by_channel: Channels | None) -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(sorted(set().union(*(by_channel[c] for c in unit)))) for unit in units if by_channel)

        slices = tuple(
            Slice(tensor, dim, of_units(sets), side, of_units(entries.get((tensor, dim, INPUT))))
            for (tensor, dim, side), sets in entries.items()
            if side in ("out", "in")
        )
        return Coupling(units, slices)

    def _items(self, layer: str, by_flow: bool) -> Iterator[tuple[nn.Module | str, int, str, Channels]]:
        """(module, or name of a parameter; dimension of the parameter; side; entries of every channel)."""
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
            side = "out" if self._graph.is_out_channel_pruning_fn(dep.handler) else "in"
            if isinstance(module, nn.Parameter):
                yield self._graph._param_to_name[module], dep.target.pruning_dim, "out", by_channel
            else:
                yield module, 0, side, by_channel

    def _handler(self, target: nn.Module | str, side: str) -> Any:
        """torch-pruning's function that cuts one side of a module; None for a parameter, which `cut` cuts."""
        if isinstance(target, str):
            return None
        pruner: Any = self._graph.get_pruner_of_module(target)
        return pruner.prune_out_channels if side == "out" else pruner.prune_in_channels

    def _entries_of(
        self, module: nn.Module | str, dim: int, side: str, by_channel: Channels
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
            if groups > 1:  # a grouped layer needs as many channels in every group: the nth of all groups go together
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
        trial, unknown = sharing(module), f"no rule is known that removes channels of {self._names[module]}"
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
        self._restate(model, changed)
        for owner, sizes in lengths.items():
            _restate_lengths(model.get_submodule(owner), sizes)

    def _cut(self, model: nn.Module, target: nn.Module | str, dim: int, side: str, entries: Sequence[int]) -> None:
        """Cut one side of a module, or a parameter, in a model with the names of this one."""
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
        """NotPrunable where a module or a parameter would lose all that it has on a side."""
        for (target, dim, side), entries in gone.items():
            if isinstance(target, str):
                name, size = target, self.model.get_parameter(target).shape[dim]
            else:
                pruner: Any = self._graph.get_pruner_of_module(target)
                sizes = pruner.get_out_channels if side == "out" else pruner.get_in_channels
                name, size = self._names[target], sizes(target)
            if size is not None and len(entries) >= size:
                raise NotPrunable(f"removing channels of {', '.join(layers)} would leave {name} empty")

    def _restate(self, model: nn.Module, changed: Sequence[tuple[Sequence[str], int, int]]) -> None:
        """Update the numbers of channels that modules around changed layers state.

        A number that equals an old width by chance is changed as well; the proof on a copy shows where that is wrong.

        Args:
            model: that was cut.
            changed: names of layers that were cut together, and the width before and after.
        """
        stating = [
            (model.get_submodule(name), name, attribute)
            for module, name in self._names.items()
            for attribute in STATED_WIDTHS
            if type(vars(module).get(attribute)) is int and [*module.children()] and module not in self._sides
        ]
        for layers, old, new in changed:
            for module, name, attribute in stating:
                around = not name or any(layer.startswith(f"{name}.") for layer in layers)
                if around and vars(module)[attribute] == old:
                    setattr(module, attribute, new)


def _with_graph(returned: Any) -> list[Tensor]:
    """All outputs that were computed from parameters, so that layers in front of any of them are seen."""
    return [tensor for tensor in all_tensors(returned).values() if tensor.grad_fn is not None]


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


def _scalar_activations(model: nn.Module) -> list[nn.Module]:
    """Activations with one parameter for all channels, which torch-pruning would take for one channel."""
    return [m for m in model.modules() if isinstance(m, nn.PReLU) and m.num_parameters == 1]


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


@contextmanager
def _as_deep_as(modules: int) -> Iterator[None]:
    """Within the block, torch-pruning looks for widths along as many steps as a deep network needs.

    Where it still gives up, it would go on with wrong indices after a warning; that is an error here.
    """
    depth = constants.MAX_RECURSION_DEPTH
    constants.MAX_RECURSION_DEPTH = max(depth, STEPS * modules)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Maximum recursive depth")
            yield
    finally:
        constants.MAX_RECURSION_DEPTH = depth


@contextmanager
def _without_new_hooks(model: nn.Module) -> Iterator[None]:
    """After the block, modules have the forward hooks from before; a trace that fails leaves its own behind."""
    hooks = {module: list(module._forward_hooks) for module in model.modules()}
    try:
        yield
    finally:
        for module, before in hooks.items():
            for key in [key for key in module._forward_hooks if key not in before]:
                del module._forward_hooks[key]


def _restate_lengths(module: nn.Module, sizes: dict[int, int]) -> None:
    """Update numbers by which a module splits its tensors.

    A number that equals an old length by chance is changed as well; the proof on a copy shows where that is wrong.
    """
    for name, value in list(vars(module).items()):
        if type(value) is int and value in sizes and name != "training":
            setattr(module, name, sizes[value])
        elif isinstance(value, list | tuple) and value and all(type(part) is int and part in sizes for part in value):
            parts = [sizes[part] for part in value]
            setattr(module, name, parts if isinstance(value, list) else tuple(parts))
