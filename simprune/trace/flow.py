"""Where channels go between layers: one forward pass in which every tensor carries the channels of its entries.

torch-pruning guesses from the names of operators what they do to channels. It cannot say which channels the parts of a
chunk hold, or where a shuffle moves them. Here every operator is applied to numbers of channels as it was applied to
the activations: what moves entries moves their numbers, what combines entries ties the channels in them, and what is
not known keeps the channels that enter it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from simprune.core.cost import Example
from simprune.core.structures import NotPrunable
from simprune.trace.context import eval_mode, uncached
from simprune.trace.pruners import Sides
from simprune.trace.rewritten import parametrizations

Channels = list[set[int]]  # entries that belong to every channel
FREE = -1  # the number of an entry that belongs to no channel, such as padding
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
UNITS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.PReLU, *NORMS)  # modules that are followed as a whole
FACTORIES = {"zeros", "ones", "empty", "full", "new_zeros", "new_empty", "new_ones", "new_full"}
FACTORIES |= {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
# Operators by what they do to the entries of their first tensor; pointwise ones are known by their tag.
SAME = {"hardswish", "dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "to", "_to_copy", "detach"}
SAME |= {"alias", "type_as", "float", "relu6", "hardtanh", "gelu", "prelu", "lift_fresh", "requires_grad_", "selu"}
PARTS = {"chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"}
VIEWS = {"view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as", "_reshape_alias"}
MOVES = {"permute", "transpose", "t", "numpy_T", "mT", "movedim", "moveaxis", "swapaxes", "swapdims", "expand"}
MOVES |= {"expand_as", "squeeze", "unsqueeze", "cat", "concat", "concatenate", "stack", "repeat", "tile", "flip"}
MOVES |= {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "roll", "diagonal"}
MOVES |= {"repeat_interleave", "hstack", "vstack", "dstack", "atleast_2d", "atleast_3d", "ravel"}
SHUFFLES = {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "flip"}
PICKS = {"select", "index_select", "unbind"}
SLICES = {"slice", "narrow"}
PLANES = ("max_pool", "avg_pool", "adaptive_", "upsample_", "_upsample_", "fractional_max_pool", "lp_pool")
REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "norm", "linalg_vector_norm"}
REDUCTIONS |= {"logsumexp", "nanmean", "median", "var_mean", "std_mean"}
ALONG = {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "softmin", "sort"}


def normalisations(model: nn.Module) -> list[nn.Module]:
    """Modules whose output depends on all channels at once, by name: LayerNorm, GroupNorm, every library's RMSNorm.

    BatchNorm and InstanceNorm treat every channel alone. Parametrizations, such as weight_norm, see weights only.
    """
    of_weights = parametrizations(model)
    leaves = [m for m in model.modules() if next(m.children(), None) is None and m not in of_weights]
    names = [(module, type(module).__name__.lower()) for module in leaves]
    return [m for m, name in names if "norm" in name and "batchnorm" not in name and "instancenorm" not in name]


@dataclass(frozen=True)
class Part:
    """One view of a tensor whose length follows from the tensor's channels: a part of a split, or a split axis.

    Args:
        owner: name of the module whose forward pass takes it.
        labels: channels of the whole tensor and of its parts.
        dim: the dimension along which the channels lie.
    """

    owner: str
    labels: tuple[Tensor, ...]
    dim: int


class ChannelFlow(TorchDispatchMode):
    """The channels of all layers of one model, followed through one forward pass.

    The model is as before afterwards.

    Args:
        model: the network.
        example: its arguments.
        sides: modules that are cut as one operation (see `simprune.trace.pruners`).
    """

    def __init__(self, model: nn.Module, example: Example, sides: dict[nn.Module, Sides]) -> None:
        super().__init__()
        self._model, self._sides = model, sides
        self._names = {module: name for name, module in model.named_modules()}
        self._norms = set(normalisations(model))
        self._labels: Any = WeakTensorKeyDictionary()
        self._count = 0  # of channel numbers
        self._ties: list[Tensor] = []  # (2, n): numbers that go together
        self._pins: dict[int, str] = {}  # numbers that stay, with the reason
        self._running = [""]  # names of the modules that run
        self._outside = True  # whether operators are followed; within units they are not
        self._outputs: dict[nn.Module, Tensor] = {}  # numbers of a layer's output channels
        self._records: dict[tuple[nn.Module | str, int, str], Tensor] = {}  # (module or parameter, dim, side)
        self._slices: list[tuple[str, Tensor, Tensor, int]] = []
        self._splits: list[tuple[str, Tensor, tuple[int, ...]]] = []
        self._parts: list[Part] = []
        self._alike: list[tuple[Tensor, tuple[int, ...], str]] = []  # channels must not differ along these dimensions
        self._moved = False  # whether an operator has split or moved channels
        self._run(example)
        self._settle()

    def _run(self, example: Example) -> None:
        args, kwargs = example
        model = self._model
        with uncached(model), eval_mode(model), self._wrapped(), torch.inference_mode():
            for name, parameter in model.named_parameters():
                long = [dim for dim, size in enumerate(parameter.shape) if size > 1]
                if long and parameter.is_floating_point():  # channels lie along the last of them
                    numbers = self._new(parameter.shape[long[-1]])
                    self._record(name, long[-1], "out", numbers)
                    self._labels[parameter] = _along(numbers, parameter.shape, long[-1])
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value.is_floating_point():
                    self._labels[value] = self._pinned("it is coupled to the network's input").expand(value.shape)
            with self:
                output = model(*args, **kwargs)
            for value in tree_leaves(output):
                if isinstance(value, Tensor) and value in self._labels:
                    self._pin(self._labels[value], "its output is the network's output")

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Within the block, modules say when they run, and units are followed as a whole."""
        own = {module: vars(module).get("forward") for module in self._names}
        inside = {part for unit in self._sides for part in unit.modules() if part is not unit}
        for module in self._names:
            unit = (isinstance(module, UNITS) or module in self._sides) and module not in inside
            module.forward = self._unit(module, module.forward) if unit else self._named(module, module.forward)
        try:
            yield
        finally:
            for module, forward in own.items():
                del module.forward
                if forward is not None:
                    module.forward = forward

    def _named(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._running.append(self._names[module])
            try:
                return forward(*args, **kwargs)
            finally:
                self._running.pop()

        return run

    def _unit(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outside, self._outside = self._outside, False
            try:
                output = forward(*args, **kwargs)
                tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
                known = [self._labels[value] for value in tensors if value in self._labels]
                first = next((value for value in tree_leaves(output) if isinstance(value, Tensor)), None)
                if outside and first is not None and _has_channels(first) and tensors:
                    labels = self._through(module, known or [torch.full((), FREE).expand(tensors[0].shape)], first)
                    if labels is not None:
                        self._labels[first] = labels.expand(first.shape)
                return output
            finally:
                self._outside = outside

        return run

    # What units do

    def _through(self, module: nn.Module, inputs: list[Tensor], output: Tensor) -> Tensor | None:
        """Channels of a unit's output, with what it reads and writes on record."""
        if module in self._sides:
            for labels in inputs:
                self._record(module, 0, "in", self._read(labels, -1))
            return _along(self._written(module, output.shape[-1]), output.shape, -1)
        if isinstance(module, nn.Embedding):
            return _along(self._written(module, module.embedding_dim), output.shape, -1)
        labels = inputs[0]
        if isinstance(module, nn.Linear) and not _varies(labels, -1) and _lies_elsewhere(labels):
            self._moved = True  # torch-pruning would take positions for channels
            self._pin(self._written(module, module.out_features), "it mixes positions, and no channels")
            return labels.narrow(-1, 0, 1).expand(output.shape)
        if isinstance(module, nn.Linear):
            self._record(module, 0, "in", self._read(labels, -1))
            return _along(self._written(module, module.out_features), output.shape, -1)
        if isinstance(module, nn.modules.conv._ConvNd):
            axis = labels.ndim - len(module.kernel_size) - 1
            numbers = self._read(labels, axis)
            if module.groups == module.in_channels == module.out_channels and module.groups > 1:
                self._record(module, 0, "out", numbers)
                return _along(numbers, output.shape, axis)
            if module.groups > 1:  # the nth channels of all groups go together
                self._tie_rows(numbers.view(module.groups, -1))
            self._record(module, 0, "in", numbers)
            written = self._written(module, module.out_channels)
            if module.groups > 1:
                self._tie_rows(written.view(module.groups, -1))
            return _along(written, output.shape, axis)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return labels
        axis = self._axis(module, labels)
        if axis is None:
            return self._pin(labels, f"{self._names[module]} normalises several dimensions at once")
        numbers = self._read(labels, axis)
        if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
            self._tie_rows(numbers.view(module.num_groups, -1))
        self._record(module, 0, "out", numbers)
        return labels

    @staticmethod
    def _axis(module: Any, labels: Tensor) -> int | None:
        """The dimension along which a normalisation's channels lie; None where there are several."""
        if not isinstance(module, nn.LayerNorm | nn.RMSNorm):
            return 1
        if len(module.normalized_shape) != 1:
            return None
        fits = [dim for dim, size in enumerate(labels.shape) if size == module.normalized_shape[0]]
        varied = [dim for dim in fits if _varies(labels, dim)]
        return (varied or fits)[-1]

    def _written(self, module: nn.Module, width: int) -> Tensor:
        """The numbers of a layer's output channels, the same in all its calls."""
        if module not in self._outputs:
            self._outputs[module] = self._new(width)
            self._record(module, 0, "out", self._outputs[module])
        return self._outputs[module]

    def _record(self, target: nn.Module | str, dim: int, side: str, numbers: Tensor) -> None:
        known = self._records.setdefault((target, dim, side), numbers)
        if known is not numbers and known.shape == numbers.shape:
            self._tie(known, numbers)  # it runs again, and reads the same entries
        elif known.shape != numbers.shape:
            self._pin(torch.cat([known, numbers]), f"{self._running[-1]} reads inputs of several widths")

    def _read(self, labels: Tensor, dim: int) -> Tensor:
        """One number per entry along a dimension; all numbers in an entry are tied."""
        thin = _thin(labels.movedim(dim, 0), 0)
        columns = thin.reshape(len(thin), -1)  # one column for a vector
        first = columns.amax(1)
        self._tie(first[:, None].expand_as(columns), columns)
        return first

    # Numbers of channels

    def _new(self, count: int) -> Tensor:
        self._count += count
        return torch.arange(self._count - count, self._count)

    def _pinned(self, reason: str) -> Tensor:
        number = self._new(1).squeeze()  # without a dimension, so that it expands to a single number as well
        self._pins[int(number)] = reason
        return number

    def _pin(self, labels: Tensor, reason: str) -> Tensor:
        """Channels that stay, with the reason; returns them."""
        self._tie(labels, self._pinned(reason).expand(labels.shape))
        return labels

    def _tie(self, a: Tensor, b: Tensor) -> None:
        if a is b:
            return
        for dim in range(a.ndim):
            if a.stride(dim) == b.stride(dim) == 0 and a.shape[dim] > 1:
                a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
        chosen = (a != b) & (a != FREE) & (b != FREE)
        if chosen.any():
            pairs = torch.unique(a[chosen] * self._count + b[chosen])  # one number per pair is sorted much faster
            self._ties.append(torch.stack([pairs // self._count, pairs % self._count]))

    def _tie_rows(self, rows: Tensor) -> None:
        """Tie entries of all rows, index by index."""
        self._tie(rows[:1].expand_as(rows), rows)

    # What operators do

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._outside:
            with _disable_current_modes():
                self._follow(func, args, kwargs, output)
        return output

    def _follow(self, func: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Give the outputs of an operator their channels; those of integers, such as indices, are none."""
        name = func._schema.name.removeprefix("aten::")
        outputs = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
        if name.removesuffix("_") in FACTORIES:
            floating = [value for value in outputs if value.is_floating_point()]
            self._labels.update({value: torch.full(value.shape, FREE) for value in floating})
            return
        known = [self._labels[v] for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v in self._labels]
        if not known or not outputs:
            return
        try:
            channels = self._labels_of(func, name, args, kwargs, known, outputs)
        except Exception:  # of a foreign operator; it costs the channels that enter it, and no others
            channels = self._mixed(known, outputs, name)
        for value, labels in zip(outputs, channels, strict=False):
            if value.dtype == torch.bool and labels is not None and torch.Tag.pointwise in func.tags:
                self._moved = True  # torch-pruning follows gradients, and comparisons have none
                self._labels[value] = labels.expand(value.shape)
            elif labels is not None and _has_channels(value):
                self._labels[value] = labels.expand(value.shape)

    def _mixed(self, known: Sequence[Tensor], outputs: Sequence[Tensor], operator: str) -> list[Tensor]:
        """An operator that may make every output of all inputs: the channels of both stay."""
        reason = f"{self._where()} mixes its channels ({operator})"
        for labels in known:
            self._pin(labels, reason)
        return [self._pinned(reason).expand(value.shape) for value in outputs]

    def _labels_of(
        self, func: Any, name: str, args: tuple, kwargs: dict, known: list[Tensor], outputs: list[Tensor]
    ) -> Sequence[Tensor | None]:
        """Channels of an operator's outputs."""
        shape, base = outputs[0].shape, name.removesuffix("_")
        if base == "copy":
            return self._copied(args, known)
        if base in SAME or torch.Tag.pointwise in func.tags:
            return [self._combined(known, shape)] * len(outputs)
        dim = _argument(func, args, kwargs, "dim")
        if base == "glu":
            halves = known[0].chunk(2, dim)
            self._split(known[0], halves, dim)
            return [self._combined(list(halves), shape)]
        if base == "pad" or base == "constant_pad_nd":
            mode = _argument(func, args, kwargs, "mode") or "constant"
            fill = FREE if mode == "constant" else None
            return [nn.functional.pad(known[0].double(), args[1], mode, fill).long()]
        if base in PARTS:
            parts = func(*self._numbers(args), **kwargs)
            self._split(known[0], parts, dim)
            return parts
        if base in VIEWS:
            labels = self._applied(func, args, kwargs, shape)
            self._splits.append((self._running[-1], labels, tuple(known[0].shape)))
            return [labels]
        if base in SLICES or base in PICKS or base == "index":
            labels = func(self._numbers(args[0]), *tree_map(_on_cpu, args[1:]), **kwargs)
            self._picked(base, args, known[0], labels, dim)
            return labels if base == "unbind" else [labels]
        if base in MOVES:
            if base in SHUFFLES:
                self._moved = True
            if base.endswith("channel_shuffle"):
                self._tie_rows(known[0].movedim(1, 0).unflatten(0, (args[1], -1)))
            return [self._applied(func, args, kwargs, shape)]
        if base.startswith(PLANES) and len(shape) == known[0].ndim:
            dims = tuple(range(2, len(shape)))
            return [self._reduced(known[0], dims)] * len(outputs)
        if base in REDUCTIONS:
            return [self._reduction(dim, known[0], len(shape))] * len(outputs)
        if base in ALONG:
            self._alike.append((known[0], (dim,), f"{self._where()} takes a {base.strip('_')} over its channels"))
            return [known[0]] * len(outputs)
        if base in ("layer_norm", "rms_norm") and len(args[1]) == 1:
            return [self._combined(known, shape)]
        return self._mixed(known, outputs, base)

    def _where(self) -> str:
        return self._running[-1] or "the network"

    def _numbers(self, args: Any) -> Any:
        """Arguments with the channels of a tensor in place of its entries."""

        def of(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value in self._labels:
                return self._labels[value]
            return torch.full(value.shape, FREE) if _has_channels(value) else value.cpu()  # indices

        return tree_map(of, args)

    def _applied(self, func: Any, args: tuple, kwargs: dict, shape: Sequence[int]) -> Tensor:
        """An operator that only moves entries, applied to their channels."""
        if func._schema.name == "aten::view":  # labels need not lie in memory as activations do
            return self._numbers(args)[0].reshape(shape)
        if func._schema.name in ("aten::cat", "aten::concat"):
            parts, dim = self._numbers(args[0]), _argument(func, args, kwargs, "dim") % len(shape)
            same = [at for at in range(len(shape)) if at != dim and all(part.stride(at) == 0 for part in parts)]
            for at in same:
                parts = [part.narrow(at, 0, 1) for part in parts]
            return torch.cat(list(parts), dim)
        return func(*self._numbers(args), **kwargs)

    def _combined(self, known: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Entries of several tensors that make one entry are tied.

        A tensor that is the same for all channels of another, such as a map that weighs positions, stays as it is, and
        does not tie them.
        """
        if len(known) == 1:
            return known[0].expand(shape)
        wide = [labels.expand(shape) for labels in known]
        varied = [{dim for dim in range(len(shape)) if _varies(labels, dim)} for labels in wide]
        shared = [self._is_for_all(labels, shape, set().union(*varied)) for labels in known]
        if all(shared):
            for labels in known:
                self._pin(labels, f"{self._where()} combines all its channels with all of another tensor")
        for labels in (labels for labels, alike in zip(known, shared, strict=True) if alike):
            self._pin(labels, f"{self._where()} applies it to all channels of another tensor")
        rest = [labels for labels, alike in zip(wide, shared, strict=True) if not alike] or wide
        first = rest[0]
        for other in rest[1:]:
            self._tie(first, other)
            if bool((_thin(first) == FREE).any()):
                first = torch.where(first == FREE, other, first)
        return first

    @staticmethod
    def _is_for_all(labels: Tensor, shape: Sequence[int], varied: set[int]) -> bool:
        """Whether a tensor has one entry along a dimension along which channels of the result lie."""
        sizes = [1] * (len(shape) - labels.ndim) + list(labels.shape)
        return any(sizes[dim] == 1 and shape[dim] > 1 for dim in varied) and bool((_thin(labels) != FREE).any())

    def _copied(self, args: tuple, known: list[Tensor]) -> Sequence[Tensor | None]:
        target, source = (self._labels.get(value) for value in args[:2])
        if target is None:
            self._pin(known[0], f"{self._where()} writes it into another tensor")
            return [None]
        source = torch.full((), FREE) if source is None else source
        target.copy_(source.expand(target.shape))  # labels of a slice share memory with those of the whole
        return [target]

    def _split(self, whole: Tensor, parts: Sequence[Tensor], dim: int) -> None:
        """Equal parts lose aligned channels, so that they stay equal."""
        if _varies(whole, dim):
            self._moved = True
            self._parts.append(Part(self._running[-1], (whole, *parts), dim % whole.ndim))
            if len({part.shape for part in parts}) == 1:
                for part in parts[1:]:
                    self._tie(parts[0], part)

    def _picked(self, base: str, args: tuple, whole: Tensor, labels: Any, dim: int) -> None:
        """Slices become parts of their tensor later; what is read at fixed indices must not be channels."""
        if base in SLICES:
            if labels.shape != whole.shape and _varies(whole, dim):
                self._moved = True
                self._slices.append((self._running[-1], whole, labels, dim % whole.ndim))
            return
        indexed = [at for at, index in enumerate(args[1]) if index is not None] if base == "index" else [dim]
        self._alike.append((whole, tuple(indexed), f"{self._where()} reads it at fixed indices"))

    def _reduced(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """One number for all entries along some dimensions, which are tied."""
        if not dims:
            return labels
        labels = _thin(labels)
        first = labels.amax(dims, keepdim=True)
        self._tie(first.expand_as(labels), labels)
        return first

    def _reduction(self, dim: int | Sequence[int] | None, labels: Tensor, rank: int) -> Tensor | None:
        dims = (dim,) if isinstance(dim, int) else tuple(dim or range(labels.ndim))
        if any(_varies(labels, at) for at in dims):
            if self._model.get_submodule(self._running[-1]) in self._norms:
                return None  # a statistic of all channels, by which a normalisation divides
            self._alike.append((labels, dims, f"{self._where()} reduces over its channels"))
        return _thin(labels).amax(dims, keepdim=rank == labels.ndim)

    # What follows for groups

    def _settle(self) -> None:
        """Tie what has to stay rectangular, and number the classes of channels that go together."""
        self._tie_slices()
        classes = self._classes()
        for owner, labels, before in self._splits:
            self._tie_axes(owner, labels, before, classes)
        classes = self._classes()
        for labels, dims, reason in self._alike:
            if any(_varies(_classed(labels, classes), dim) for dim in dims):
                self._pin(labels, reason)
        self._class = self._classes()
        self._stay = {int(self._class[number]): reason for number, reason in reversed(self._pins.items())}
        self._pairs = {key: _classed(numbers, self._class).numpy() for key, numbers in self._records.items()}
        self._places: dict[int, dict[Any, None]] = {}  # class -> the keys of what has an entry in it, in order
        for key, classes in self._pairs.items():
            for number in np.unique(classes).tolist():
                self._places.setdefault(number, {})[key] = None
        self._rank = {key: rank for rank, key in enumerate(self._pairs)}

    def _classes(self) -> np.ndarray:
        ties = torch.cat(self._ties, 1).numpy() if self._ties else np.empty((2, 0), dtype=int)
        graph = coo_array((np.ones(ties.shape[1]), (ties[0], ties[1])), shape=(self._count, self._count))
        return connected_components(graph, directed=False)[1]

    def _tie_slices(self) -> None:
        """Slices of equal length of one tensor are read as its parts."""
        groups: dict[tuple[int, int, int], list[tuple[str, Tensor, Tensor, int]]] = {}
        for item in self._slices:
            _, whole, labels, dim = item
            groups.setdefault((id(whole), dim, labels.shape[dim]), []).append(item)
        for items in groups.values():
            owner, whole, first, dim = items[0]
            self._parts.append(Part(owner, (whole, *(labels for _, _, labels, _ in items)), dim))
            for _, _, labels, _ in items[1:]:
                if not np.isin(labels.numpy(), first.numpy()).all():
                    self._tie(first, labels)

    def _tie_axes(self, owner: str, labels: Tensor, before: tuple[int, ...], classes: np.ndarray) -> None:
        """An axis of channels that is split into several keeps only one of them free; the others are tied.

        The longest stays free, the last of equal ones: counts that programs write down, such as numbers of groups or
        factors of a shuffle, are small. A later removal on a copy shows where that is wrong.
        """
        now = _classed(labels, classes)
        for dims in _split_axes(before, tuple(labels.shape)):
            if sum(_varies(labels, dim) for dim in dims) < 2:
                continue
            self._moved = True
            varied = [dim for dim in dims if _varies(now, dim)]
            if not varied:
                continue
            counts = {dim: len(torch.unique(now.movedim(dim, 0).flatten(1)[:, 0])) for dim in varied}
            free = max(varied, key=lambda dim: (counts[dim], labels.shape[dim], dim))
            self._parts.append(Part(owner, (labels,), free))
            for dim in varied:
                if dim != free:
                    self._tie_rows(labels.movedim(dim, 0))

    # What is asked

    def runs(self, module: nn.Module) -> bool:
        """Whether a layer takes part in the forward pass."""
        return module in self._outputs or (module, 0, "out") in self._records

    @property
    def rearranges(self) -> bool:
        """Whether any channels are split into parts or moved before a layer reads them."""
        return self._moved

    def refusal(self, module: nn.Module) -> str | None:
        """Why the channels of a layer have to stay; None where they can go."""
        if not self.runs(module):
            return "it takes no part in the forward pass, or the trace does not see it"
        channels = self._pairs[(module, 0, "out")].tolist()
        return next((self._stay[channel] for channel in channels if channel in self._stay), None)

    def size(self, target: nn.Module | str, dim: int, side: str) -> int:
        """Number of entries of a module's side, or of a parameter."""
        return len(self._pairs[(target, dim, side)])

    def lengths(self, gone: Mapping[tuple[nn.Module | str, int, str], Collection[int]]) -> dict[str, dict[int, int]]:
        """How long the parts of tensors are before and after a removal, by the module that splits them.

        Args:
            gone: entries that are removed, by (module or parameter, dimension, side).
        """
        classes = {int(self._pairs[key][index]) for key, entries in gone.items() for index in entries}
        lengths: dict[str, dict[int, int]] = {}
        for part in self._parts:
            for labels in part.labels:
                entries = _classed(labels, self._class).movedim(part.dim, 0).flatten(1).amax(1).tolist()
                remaining = sum(entry not in classes for entry in entries)
                sizes = lengths.setdefault(part.owner, {})
                sizes[len(entries)] = remaining if sizes.get(len(entries), remaining) == remaining else len(entries)
        return lengths

    def items(self, module: nn.Module) -> list[tuple[nn.Module | str, int, str, Channels]]:
        """The modules and parameters that lose entries with a layer's channels.

        Returns:
            (module, or name of a parameter; dimension of the parameter; side; entries by channel).

        Raises:
            NotPrunable: with the reason, where the channels have to stay.
        """
        reason = self.refusal(module)
        if reason is not None:
            raise NotPrunable(reason)
        channels = self._pairs[(module, 0, "out")]
        keys = {key for channel in set(channels.tolist()) for key in self._places[channel]}
        coupled = []
        for target, dim, side in sorted(keys, key=self._rank.__getitem__):
            entries: dict[int, set[int]] = {}
            for index, label in enumerate(self._pairs[(target, dim, side)].tolist()):
                entries.setdefault(label, set()).add(index)
            coupled.append((target, dim, side, [entries.get(channel, set()) for channel in channels.tolist()]))
        return coupled


def _along(numbers: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Numbers of channels as a tensor of this shape, which needs no memory."""
    return numbers.view([-1 if at == dim % len(shape) else 1 for at in range(len(shape))]).expand(shape)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _has_channels(value: Tensor) -> bool:
    """Whether a tensor may hold activations; integers and flags are indices and masks."""
    return value.is_floating_point() or value.is_complex()


def _thin(labels: Tensor, whole: int | None = None) -> Tensor:
    """Labels with one entry along dimensions in which they only repeat; the dimension `whole` keeps its length."""
    for dim in range(labels.ndim):
        if labels.stride(dim) == 0 and labels.shape[dim] > 1 and dim != whole:
            labels = labels.narrow(dim, 0, 1)
    return labels


def _varies(labels: Tensor, dim: int) -> bool:
    """Whether different channels lie along a dimension; entries of no channel do not count."""
    if not labels.numel() or labels.stride(dim) == 0 or labels.shape[dim] == 1:
        return False
    labels = _thin(labels)
    highest = labels.amax(dim, keepdim=True)
    return bool(((labels != highest) & (labels != FREE)).any())


def _lies_elsewhere(labels: Tensor) -> bool:
    """Whether different channels lie along another dimension than the last one."""
    return any(_varies(labels, dim) for dim in range(labels.ndim - 1))


def _classed(labels: Tensor, classes: np.ndarray) -> Tensor:
    """Labels with the number of a channel's class in place of its own."""
    thin = _thin(labels)
    return torch.where(thin == FREE, FREE, torch.from_numpy(classes).long()[thin.clamp(min=0)]).expand(labels.shape)


def _argument(func: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """An argument of an operator by its name in the schema; its default, or None, when it is left out."""
    for at, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[at] if at < len(args) else kwargs.get(name, argument.default_value)
    return None


def _split_axes(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Dimensions of a view that share dimensions of its source, where they are several.

    >>> list(_split_axes((2, 6, 4), (2, 2, 3, 4)))
    [(1, 2)]
    >>> list(_split_axes((2, 6, 4), (2, 24)))
    []
    """
    at = there = 0
    while at < len(before) and there < len(after):
        first, (mine, theirs) = there, (before[at], after[there])
        at, there = at + 1, there + 1
        while mine != theirs:
            if mine < theirs:
                mine, at = mine * before[at], at + 1
            else:
                theirs, there = theirs * after[there], there + 1
        dims = tuple(dim for dim in range(first, there) if after[dim] > 1)
        if len(dims) > 1:
            yield dims
