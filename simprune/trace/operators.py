"""What operators do to channels: those that move entries move their numbers, others tie the channels they combine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from simprune.trace.channel_numbers import ChannelNumbers
from simprune.trace.labels import FREE, classed, has_channels, split_axes, thin, varies

FACTORIES = {"zeros", "ones", "empty", "full", "new_zeros", "new_empty", "new_ones", "new_full"}
FACTORIES |= {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
# Operators by what they do to the entries of their first tensor; pointwise ones are known by their tag.
SAME = {"hardswish", "dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "to", "_to_copy", "detach"}
SAME |= {"alias", "type_as", "float", "relu6", "hardtanh", "gelu", "prelu", "lift_fresh", "requires_grad_", "selu"}
SAME |= {"where"}
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


class Operators:
    """The channels of tensors, and how operators pass them on.

    Args:
        numbers: of the channels.
        running: name of the module that runs; empty for the network itself.
        normalises: whether it is a normalisation, whose statistics over all channels are no reading of them.
    """

    def __init__(self, numbers: ChannelNumbers, running: Callable[[], str], normalises: Callable[[str], bool]) -> None:
        self.labels: Any = WeakTensorKeyDictionary()  # tensor -> numbers of its entries' channels
        self.moved = False  # whether an operator has split or moved channels
        self.parts: list[Part] = []
        self.splits: list[tuple[str, Tensor, tuple[int, ...]]] = []  # module, labels of a view, shape of its source
        self.slices: list[tuple[str, Tensor, Tensor, int]] = []  # module, labels of the whole and of the slice, dim
        self._numbers, self._running, self._normalises = numbers, running, normalises

    def follow(self, func: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """Give the outputs of an operator their channels; those of integers, such as indices, are none."""
        name = func._schema.name.removeprefix("aten::")
        outputs = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
        if name.removesuffix("_") in FACTORIES:
            floating = [value for value in outputs if value.is_floating_point()]
            self.labels.update({value: torch.full(value.shape, FREE) for value in floating})
            return
        known = [self.labels[v] for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v in self.labels]
        if not known or not outputs:
            return
        try:
            channels = self._labels_of(func, name, args, kwargs, known, outputs)
        except Exception:  # of a foreign operator; it costs the channels that enter it, and no others
            channels = self._mixed(known, outputs, name)
        for value, labels in zip(outputs, channels, strict=False):
            if value.dtype == torch.bool and labels is not None and torch.Tag.pointwise in func.tags:
                if not self._numbers.is_stored(labels):
                    self.moved = True  # torch-pruning follows gradients, and comparisons have none
                self.labels[value] = labels.expand(value.shape)
            elif labels is not None and has_channels(value):
                self.labels[value] = labels.expand(value.shape)

    def _mixed(self, known: Sequence[Tensor], outputs: Sequence[Tensor], operator: str) -> list[Tensor]:
        """An operator that may make every output of all inputs: the channels of both stay."""
        reason = f"{self._where()} mixes its channels ({operator})"
        for labels in known:
            self._numbers.pin(labels, reason)
        return [self._numbers.pinned(reason).expand(value.shape) for value in outputs]

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
            parts = func(*self._of_entries(args), **kwargs)
            self._split(known[0], parts, dim)
            return parts
        if base in VIEWS:
            labels = self._applied(func, args, kwargs, shape)
            self.splits.append((self._running(), labels, tuple(known[0].shape)))
            return [labels]
        if base in SLICES or base in PICKS or base == "index":
            labels = func(self._of_entries(args[0]), *tree_map(_on_cpu, args[1:]), **kwargs)
            self._picked(base, args, known[0], labels, dim)
            return labels if base == "unbind" else [labels]
        if base in MOVES:
            if base in SHUFFLES:
                self.moved = True
            if base.endswith("channel_shuffle"):
                self._numbers.tie_rows(known[0].movedim(1, 0).unflatten(0, (args[1], -1)))
            return [self._applied(func, args, kwargs, shape)]
        if base.startswith(PLANES) and len(shape) == known[0].ndim:
            dims = tuple(range(2, len(shape)))
            return [self._numbers.reduced(known[0], dims)] * len(outputs)
        if base in REDUCTIONS:
            return [self._reduction(dim, known[0], len(shape))] * len(outputs)
        if base in ALONG:
            self._numbers.keep_alike(known[0], (dim,), f"{self._where()} takes a {base.strip('_')} over its channels")
            return [known[0]] * len(outputs)
        if base in ("layer_norm", "rms_norm") and len(args[1]) == 1:
            return [self._combined(known, shape)]
        return self._mixed(known, outputs, base)

    def _where(self) -> str:
        return self._running() or "the network"

    def _of_entries(self, args: Any) -> Any:
        """Arguments with the channels of a tensor in place of its entries."""

        def of(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value in self.labels:
                return self.labels[value]
            return torch.full(value.shape, FREE) if has_channels(value) else value.cpu()  # indices

        return tree_map(of, args)

    def _applied(self, func: Any, args: tuple, kwargs: dict, shape: Sequence[int]) -> Tensor:
        """An operator that only moves entries, applied to their channels."""
        if func._schema.name == "aten::view":  # labels need not lie in memory as activations do
            return self._of_entries(args)[0].reshape(shape)
        if func._schema.name in ("aten::cat", "aten::concat"):
            parts, dim = self._of_entries(args[0]), _argument(func, args, kwargs, "dim") % len(shape)
            same = [at for at in range(len(shape)) if at != dim and all(part.stride(at) == 0 for part in parts)]
            for at in same:
                parts = [part.narrow(at, 0, 1) for part in parts]
            return torch.cat(list(parts), dim)
        return func(*self._of_entries(args), **kwargs)

    def _combined(self, known: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """Entries of several tensors that make one entry are tied.

        A tensor that is the same for all channels of another, such as a map that weighs positions, stays as it is, and
        does not tie them. Where every entry of a stored tensor has a number, the others say which are its channels.
        """
        if len(known) == 1:
            return known[0].expand(shape)
        stored = [self._numbers.is_stored(labels) for labels in known]
        known = [labels for _, labels in sorted(zip(stored, known, strict=True), key=itemgetter(0))]
        stored.sort()
        wide = [labels.expand(shape) for labels in known]
        varied = [
            {dim for dim in range(len(shape)) if not entries and varies(labels, dim)}
            for labels, entries in zip(wide, stored, strict=True)
        ]
        along = {dim for dims in varied for dim in dims if shape[dim] > 1}
        shared = [
            self._is_for_all(labels, len(shape), along, all if entries else any)
            for labels, entries in zip(known, stored, strict=True)
        ]
        if any(alike and not own for own, alike in zip(varied, shared, strict=True)):
            self.moved = True  # torch-pruning would take the one entry for a channel of the other tensor
        if all(shared):
            for labels in known:
                self._numbers.pin(labels, f"{self._where()} combines all its channels with all of another tensor")
        for labels in (labels for labels, alike in zip(known, shared, strict=True) if alike):
            self._numbers.pin(labels, f"{self._where()} applies it to all channels of another tensor")
        rest = [labels for labels, alike in zip(wide, shared, strict=True) if not alike] or wide
        first = rest[0]
        for other in rest[1:]:
            self._numbers.tie(first, other)
            if bool((thin(first) == FREE).any()):
                first = torch.where(first == FREE, other, first)
        return first

    @staticmethod
    def _is_for_all(labels: Tensor, rank: int, along: set[int], which: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether a tensor has one entry along any, or all, of the dimensions along which channels of a result lie.

        All of them for a stored tensor: tokens of several layers, one behind the other, lie along their positions too.
        """
        sizes = [1] * (rank - labels.ndim) + list(labels.shape)
        return bool(along) and which(sizes[dim] == 1 for dim in along) and bool((thin(labels) != FREE).any())

    def _is_map(self, labels: Tensor) -> bool:
        """Whether it is a stored tensor of several dimensions, of which it does not show yet which holds channels."""
        return self._numbers.is_stored(labels) and sum(varies(labels, dim) for dim in range(labels.ndim)) > 1

    def _copied(self, args: tuple, known: list[Tensor]) -> Sequence[Tensor | None]:
        target, source = (self.labels.get(value) for value in args[:2])
        if target is None:
            self._numbers.pin(known[0], f"{self._where()} writes it into another tensor")
            return [None]
        source = torch.full((), FREE) if source is None else source
        target.copy_(source.expand(target.shape))  # labels of a slice share memory with those of the whole
        return [target]

    def _split(self, whole: Tensor, parts: Sequence[Tensor], dim: int) -> None:
        """Equal parts lose aligned channels, so that they stay equal."""
        if varies(whole, dim):
            self.moved = True
            self.parts.append(Part(self._running(), (whole, *parts), dim % whole.ndim))
            if len({part.shape for part in parts}) == 1:
                for part in parts[1:]:
                    self._numbers.tie(parts[0], part)

    def _picked(self, base: str, args: tuple, whole: Tensor, labels: Any, dim: int) -> None:
        """Slices become parts of their tensor later; what is read at fixed indices must not be channels."""
        if base in SLICES:
            if labels.shape != whole.shape and varies(whole, dim) and not self._is_map(whole):
                self.moved = True
                self.slices.append((self._running(), whole, labels, dim % whole.ndim))
            return
        indexed = [at for at, index in enumerate(args[1]) if index is not None] if base == "index" else [dim]
        self._numbers.keep_alike(whole, tuple(indexed), f"{self._where()} reads it at fixed indices")

    def _reduction(self, dim: int | Sequence[int] | None, labels: Tensor, rank: int) -> Tensor | None:
        dims = (dim,) if isinstance(dim, int) else tuple(dim or range(labels.ndim))
        if any(varies(labels, at) for at in dims):
            if self._normalises(self._running()):
                return None  # a statistic of all channels, by which a normalisation divides
            self._numbers.keep_alike(labels, dims, f"{self._where()} reduces over its channels")
        return thin(labels).amax(dims, keepdim=rank == labels.ndim)

    def settle(self) -> None:
        """Tie what has to stay rectangular: parts of one length, and all but one of the axes that an axis becomes."""
        self._tie_slices()
        classes = self._numbers.classes()
        for owner, labels, before in self.splits:
            self._tie_axes(owner, labels, before, classes)

    def _tie_slices(self) -> None:
        """Slices of equal length of one tensor are read as its parts."""
        groups: dict[tuple[int, int, int], list[tuple[str, Tensor, Tensor, int]]] = {}
        for item in self.slices:
            _, whole, labels, dim = item
            groups.setdefault((id(whole), dim, labels.shape[dim]), []).append(item)
        for items in groups.values():
            owner, whole, first, dim = items[0]
            self.parts.append(Part(owner, (whole, *(labels for _, _, labels, _ in items)), dim))
            for _, _, labels, _ in items[1:]:
                if not np.isin(labels.numpy(), first.numpy()).all():
                    self._numbers.tie(first, labels)

    def _tie_axes(self, owner: str, labels: Tensor, before: tuple[int, ...], classes: np.ndarray) -> None:
        """An axis of channels that is split into several keeps only one of them free; the others are tied.

        The longest stays free, the last of equal ones: counts that programs write down, such as numbers of groups or
        factors of a shuffle, are small. A later removal on a copy shows where that is wrong.
        """
        now = classed(labels, classes)
        for dims in split_axes(before, tuple(labels.shape)):
            if sum(varies(labels, dim) for dim in dims) < 2:
                continue
            self.moved |= not self._is_map(labels)
            varied = [dim for dim in dims if varies(now, dim)]
            if not varied:
                continue
            counts = {dim: len(torch.unique(now.movedim(dim, 0).flatten(1)[:, 0])) for dim in varied}
            free = max(varied, key=lambda dim: (counts[dim], labels.shape[dim], dim))
            self.parts.append(Part(owner, (labels,), free))
            for dim in varied:
                if dim != free:
                    self._numbers.tie_rows(labels.movedim(dim, 0))


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _argument(func: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """An argument of an operator by its name in the schema; its default, or None, when it is left out."""
    for at, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[at] if at < len(args) else kwargs.get(name, argument.default_value)
    return None
