"""Along which dimensions of a tensor channels and inputs lie: known from the layer that made it, followed by the trace.

A convolution gives channels in dimension 1, a linear layer or an embedding in the last one. From there on the dimension
is followed through every operator: permuting moves it, reshaping keeps it where the same entries still lie side by
side, elementwise operators, pooling and padding leave it. A tensor that no layer made, such as the network's input, has
its channels where the first layer that reads it expects them.

The inputs of a batch lie along the first dimension of what the network gets, and are followed in the same way: a
network may work on (positions, inputs, channels).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from simprune.core.batches import first_tensor, tensors_in
from simprune.core.cost import Example
from simprune.trace.context import eval_mode, uncached
from simprune.trace.hooks import hooks
from simprune.trace.layers import is_conv1d

SECOND = ("convolution", "native_batch_norm", "cudnn_batch_norm", "native_group_norm")  # operators over dimension 1
LAST = ("mm", "addmm", "bmm", "baddbmm", "embedding")  # operators that give channels last
BEHIND = ("view_as_real", "unfold")  # operators that add a dimension behind the others
NORMS = ("norm", "linalg_vector_norm")  # reductions whose second argument is the order of the norm
REDUCING = (
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "prod",
    "var",
    "std",
    "logsumexp",
    *NORMS,
)
WINDOWS = ("im2col", "col2im")
RESHAPING = ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze")


@dataclass(frozen=True)
class Axes:
    """The dimension of the channels, by module, of the first tensor that it gets and of the first that it returns.

    The module "" is the model itself. A module that never ran, or whose tensors no layer reaches, has none. `batches`
    holds the dimension of the inputs of the batch, by module and "input" or "output", where it is not the first one.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    batches: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def batch(self, module: str, side: str) -> int:
        """The dimension of the inputs of the batch at the "input" or "output" of a module."""
        return self.batches.get((module, side), 0)

    def of(self, module: str, side: str) -> int | None:
        """The dimension at the "input" or "output" of a module; None where it is not known."""
        return (self.inputs if side == "input" else self.outputs).get(module)


def channels_last(value: Tensor, axis: int | None, batch: int = 0) -> Tensor:
    """(N, positions, channels) of an activation whose channels lie along `axis`, and its N inputs along `batch`.

    Vectors (N, C) have one position. Where no layer tells the axis, it is 1 of four dimensions or more and the last of
    three.

    >>> channels_last(torch.zeros(2, 3, 4, 5), 1).shape, channels_last(torch.zeros(2, 4, 5, 3), -1).shape
    (torch.Size([2, 20, 3]), torch.Size([2, 20, 3]))
    """
    if value.ndim < 3:
        return value.flatten(1)[:, None]
    return value.movedim((batch, channel_axis(value, axis)), (0, -1)).flatten(1, -2)


def channel_axis(value: Tensor, axis: int | None) -> int:
    """The axis itself, or where it is None what `channels_last` says."""
    if axis is not None:
        return axis % value.ndim
    return 1 if value.ndim == 2 or value.ndim > 3 else value.ndim - 1


def like(rows: Tensor, value: Tensor, axis: int | None) -> Tensor:
    """Rows (N, positions, channels) in the layout of an activation: the inverse of `channels_last`.

    >>> value = torch.randn(2, 3, 4, 5)
    >>> torch.equal(like(channels_last(value, 1), value, 1), value)
    True
    """
    if value.ndim < 3:
        return rows.reshape(value.shape)
    axis = channel_axis(value, axis)
    return rows.unflatten(1, [size for dim, size in enumerate(value.shape) if dim not in (0, axis)]).movedim(-1, axis)


def axes_of(model: nn.Module, example: Example) -> Axes:
    """Follow the channels through one forward pass in evaluation mode.

    >>> model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU())
    >>> axes_of(model, ((torch.zeros(2, 3, 8),), {})).outputs["1"]
    1
    """
    return follow(model, example)[0]


def follow(model: nn.Module, example: Example) -> "tuple[Axes, Any, Following]":
    """As `axes_of`; also what the model returned, and what is known of its tensors."""
    following = Following()
    waiting: list[tuple[str, Tensor]] = []  # inputs whose axis a later layer tells
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    batches: dict[tuple[str, str], int] = {}

    def enter(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        value = first_tensor((args, kwargs))
        if value is None or value.ndim < 2:
            return
        own = own_axis(module, value)
        if own is not None:
            following.tell(value, own)
        if following.axes.get(value) is None:
            waiting.append((name, value))
        else:
            inputs[name] = following.axes[value] if own is None else own
        if following.batches.get(value):
            batches[name, "input"] = following.batches[value]

    def leave(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value = first_tensor(output)
        if value is None or value.ndim < 2:
            return
        own = own_axis(module, value)
        entered = first_tensor((args, kwargs))
        entered = value if entered is None or entered.ndim != value.ndim else entered
        if own is not None:
            along = None if entered is value else following.axes.get(entered)
            following.axes[value] = own if along is None or isinstance(module, _ConvNd) else along
        if value not in following.batches and entered in following.batches:  # attention splits and joins dimensions
            following.batches[value] = following.batches[entered]
        if following.axes.get(value) is not None:
            outputs[name] = following.axes[value]
        if following.batches.get(value):
            batches[name, "output"] = following.batches[value]

    modules = [*model.named_modules()]
    befores, afters = ([(module, partial(see, name)) for name, module in modules] for see in (enter, leave))
    args, kwargs = example
    following.batches.update((value, 0) for value in tensors_in((*args, *kwargs.values())) if value.ndim)
    with eval_mode(model), uncached(model), torch.no_grad(), hooks(befores, afters), following:
        result = model(*args, **kwargs)
    late = {name: following.axes[value] for name, value in waiting if following.axes.get(value) is not None}
    return Axes(late | inputs, outputs, batches), result, following


def own_axis(module: nn.Module, value: Tensor) -> int | None:
    """The dimension of the channels in what a module gets or gives, where its type tells; otherwise None.

    A linear layer that runs along another dimension than the channels, as where positions are mixed, is not told apart
    here: its own channels are what it multiplies.
    """
    if isinstance(module, _ConvNd | _BatchNorm | nn.GroupNorm):
        return 1
    if isinstance(module, nn.Linear | nn.RNNBase) or is_conv1d(module):
        return value.ndim - 1
    return None


class Following(TorchDispatchMode):
    """Remembers the dimensions of channels and of inputs of every tensor that lives, operator after operator.

    `gone` holds tensors whose channels were reduced or picked out, `shuffled` the factor of a pixel shuffle behind the
    layer that made a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.axes: Any = WeakTensorKeyDictionary()
        self.batches: Any = WeakTensorKeyDictionary()
        self.gone: Any = WeakTensorKeyDictionary()
        self.shuffled: Any = WeakTensorKeyDictionary()
        self.origins: Any = WeakTensorKeyDictionary()  # what a tensor without known channels was computed from

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__
        for output in tensors_in(result):
            axis = self._after(operator, args, output) if output.ndim > 1 else None
            if axis is not None and output not in self.axes:
                self.axes[output] = axis
            self._mark(operator, args, output, axis)
            if axis is None:
                self.origins.update(
                    (output, x) for x in tensors_in(args) if x.shape == output.shape and x is not output
                )
            batch = self._batch(operator, args, output) if output.ndim > 1 else None
            if batch is not None and output not in self.batches:
                self.batches[output] = batch
        return result

    def _mark(self, operator: str, args: tuple, output: Tensor, axis: int | None) -> None:
        """Remember whether an output has lost its channels, or has them shuffled into its positions."""
        if operator in SECOND or operator in LAST:
            return
        sources = [value for value in tensors_in(args) if value.ndim]
        known = [value for value in sources if value in self.axes]
        if axis is None:
            lost = [value for value in known if loses(operator, value, self.axes[value])]
            if lost or (not known and any(value in self.gone for value in sources)):
                self.gone[output] = True
        elif operator == "pixel_shuffle" and axis == 1 and output.ndim == 4:
            self.shuffled[output] = args[1]
        else:
            factor = next((self.shuffled[value] for value in known if value in self.shuffled), None)
            if factor is not None and any(value.shape == output.shape for value in known):
                self.shuffled[output] = factor

    def tell(self, value: Tensor | None, axis: int) -> None:
        """State the dimension of the channels of a tensor, and of those that it was computed from, if it is unknown."""
        while value is not None and value not in self.axes:
            self.axes[value] = axis
            value = self.origins.get(value)

    def _batch(self, operator: str, args: tuple, output: Tensor) -> int | None:
        """The dimension of the inputs in one output of an operator; None where it is not known."""
        sources = [value for value in tensors_in(args) if value in self.batches]
        if not sources or operator in LAST:
            return self.batches[args[1]] if operator == "embedding" and sources else None
        source = max(sources, key=lambda value: value.ndim)
        return moved(operator, args, source, self.batches[source], output)

    def _after(self, operator: str, args: tuple, output: Tensor) -> int | None:
        """The dimension of the channels in one output of an operator; None where it is not known."""
        sources = [value for value in tensors_in(args) if self.axes.get(value) is not None]
        if operator in SECOND:
            if args[0].ndim > 1:
                self.tell(args[0], 1)
            return 1 if operator == "convolution" else self.axes[args[0]]
        if operator in LAST:
            return output.ndim - 1
        if not sources and operator == "native_layer_norm" and len(args[1]) == 1:
            self.tell(args[0], args[0].ndim - 1)
            return output.ndim - 1
        if not sources:
            return None
        source = max(sources, key=lambda value: value.ndim)
        return moved(operator, args, source, self.axes[source], output)


def loses(operator: str, source: Tensor, axis: int) -> bool:
    """Whether an operator behind which no dimension `axis` is left picks or reduces along it, and mixes nothing."""
    if operator in RESHAPING:
        return source.shape[axis] == 1
    return operator in ("select", "unbind") or operator in REDUCING


def moved(operator: str, args: tuple, source: Tensor, axis: int, output: Tensor) -> int | None:
    """Where dimension `axis` of `source` lies in the output of an operator; None where it is gone or unclear."""
    dims, size = source.ndim, source.shape[axis]
    if operator == "permute":
        return [dim % dims for dim in args[1]].index(axis)
    if operator in ("transpose", "t"):
        swapped = [dim % dims for dim in (args[1:3] if operator == "transpose" else (0, 1))]
        return swapped[1 - swapped.index(axis)] if axis in swapped else axis
    if operator in BEHIND:
        return axis
    if operator == "view_as_complex":  # the last dimension becomes one number
        return axis if axis < dims - 1 else None
    if operator in RESHAPING:
        before = prod(source.shape[:axis])
        same = [dim for dim, n in enumerate(output.shape) if n == size and prod(output.shape[:dim]) == before]
        return min(same, key=lambda dim: abs(dim - axis), default=None)
    if operator in ("select", "unbind"):
        dim = (args[1] if len(args) > 1 else 0) % dims
        return None if dim == axis else axis - (dim < axis)
    if operator == "stack":
        return axis + ((args[1] if len(args) > 1 else 0) % (dims + 1) <= axis)
    if operator in WINDOWS:  # maps become windows, or windows maps; both have inputs and channels in front
        return axis if axis < 2 else None
    if operator == "index":
        return _indexed(args[1], axis, output.ndim - dims)
    if output.ndim < dims:  # a reduction over some dimensions
        at = 2 if operator in NORMS else 1
        gone = args[at] if len(args) > at else ()
        gone = {dim % dims for dim in (gone if isinstance(gone, list | tuple) else [gone]) if isinstance(dim, int)}
        kept = dims - len(gone) == output.ndim and axis not in gone
        return axis - sum(dim < axis for dim in gone) if kept else None
    return axis + output.ndim - dims  # broadcasting aligns dimensions from the right


def _indexed(indices: Sequence[Tensor | None], axis: int, more: int) -> int | None:
    """Where dimension `axis` lies after indexing by tensors, which adds `more` dimensions; None where it is picked.

    A mask of two dimensions stands at the first of them, and makes one of both.

    >>> picked, mask = torch.tensor([0, 2]), torch.ones(2, 3, dtype=torch.bool)
    >>> _indexed([None, picked], 1, 0), [_indexed([mask], axis, -1) for axis in (0, 1, 2)]
    (1, [None, None, 1])
    """
    at = [dim for dim, index in enumerate(indices) if index is not None]
    if axis in at:  # a list of entries stays where it was
        return axis if len(at) == 1 and more == 0 else None
    if at[0] <= axis <= at[0] - more:  # within a mask of several dimensions
        return None
    together = at == [*range(at[0], at[-1] + 1)]
    if together and axis < at[0]:
        return axis
    return axis + more if together else None
