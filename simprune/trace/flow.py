"""Where channels go between layers: one forward pass in which every tensor carries the channels of its entries.

torch-pruning guesses from the names of operators what they do to channels. It cannot say which channels the parts of a
chunk hold, or where a shuffle moves them. Here every operator is applied to numbers of channels as it was applied to
the activations: what moves entries moves their numbers, what combines entries ties the channels in them, and what is
not known keeps the channels that enter it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from simprune.core.cost import Example
from simprune.core.structures import NotPrunable
from simprune.trace.channel_numbers import BUFFER, ChannelNumbers
from simprune.trace.context import eval_mode, uncached
from simprune.trace.labels import FREE, along, classed, has_channels, lies_elsewhere, varies
from simprune.trace.layers import is_multiplied, output_dim
from simprune.trace.operators import Operators
from simprune.trace.pruners import Sides
from simprune.trace.rewritten import parametrizations

Channels = list[set[int]]  # entries that belong to every channel
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
ENTRIES = 2**18  # of a parameter or buffer, up to which each has a number of its own
PRODUCTS = (nn.modules.conv._ConvNd, nn.Linear)
UNITS = (*PRODUCTS, nn.Embedding, nn.PReLU, *NORMS)  # modules that are followed as a whole


def normalisations(model: nn.Module) -> list[nn.Module]:
    """Modules whose output depends on all channels at once, by name: LayerNorm, GroupNorm, every library's RMSNorm.

    BatchNorm and InstanceNorm treat every channel alone. Parametrizations, such as weight_norm, see weights only.
    """
    of_weights = parametrizations(model)
    leaves = [m for m in model.modules() if next(m.children(), None) is None and m not in of_weights]
    names = [(module, type(module).__name__.lower()) for module in leaves]
    return [m for m, name in names if "norm" in name and "batchnorm" not in name and "instancenorm" not in name]


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
        self._inside = {part for unit in sides for part in unit.modules() if part is not unit}
        self._norms = set(normalisations(model))
        self._numbers = ChannelNumbers()
        self._running = [""]  # names of the modules that run
        self._operators = Operators(self._numbers, lambda: self._running[-1], self._is_norm)
        self._labels = self._operators.labels
        self._outside = True  # whether operators are followed; within units they are not
        self._outputs: dict[nn.Module, Tensor] = {}  # numbers of a layer's output channels
        self._records: dict[tuple[nn.Module | str, int, str], Tensor] = {}  # (module or stored tensor, dim, side)
        self._mixing: dict[nn.Module, Tensor] = {}  # channels that lie along the positions of a layer that mixes others
        self._run(example)
        self._settle()

    def _run(self, example: Example) -> None:
        args, kwargs = example
        model = self._model
        with uncached(model), eval_mode(model), self._wrapped(), torch.inference_mode():
            for name, tensor in chain(model.named_parameters(), model.named_buffers()):
                self._number(name, tensor)
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and value.is_floating_point():
                    self._labels[value] = self._numbers.pinned("it is coupled to the network's input").expand(
                        value.shape
                    )
            with self:
                output = model(*args, **kwargs)
            for value in tree_leaves(output):
                if isinstance(value, Tensor) and value in self._labels:
                    self._numbers.pin(self._labels[value], "its output is the network's output")

    def _number(self, name: str, tensor: Tensor) -> None:
        """Number the channels of a parameter or buffer, or all entries where it does not show which are channels."""
        long, buffer = _long(tensor), not isinstance(tensor, nn.Parameter)
        if not long or not (tensor.is_floating_point() or (buffer and tensor.dtype == torch.bool)):
            return
        owner, small = self._model.get_submodule(name.rpartition(".")[0]), tensor.numel() <= ENTRIES
        unit = isinstance(owner, UNITS) or owner in self._sides or owner in self._inside
        if not unit and small:
            self._labels[tensor] = self._numbers.of_entries(name, tensor)
        elif not buffer:  # channels lie along the last of them
            numbers = self._numbers.new(tensor.shape[long[-1]])
            self._record(name, long[-1], "out", numbers)
            self._labels[tensor] = along(numbers, tensor.shape, long[-1])

    def _is_norm(self, name: str) -> bool:
        return self._model.get_submodule(name) in self._norms

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        """Within the block, modules say when they run, and units are followed as a whole."""
        own = {module: vars(module).get("forward") for module in self._names}
        for module in self._names:
            unit = (isinstance(module, UNITS) or module in self._sides) and module not in self._inside
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
                outputs = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
                first = outputs[0] if outputs else None
                if outside and isinstance(module, PRODUCTS) and (len(outputs) > 1 or len(known) > 1):
                    self._pin_whole(module, known, outputs)
                elif outside and first is not None and has_channels(first) and tensors:
                    labels = self._through(module, known or [torch.full((), FREE).expand(tensors[0].shape)], first)
                    if labels is not None:
                        self._labels[first] = labels.expand(first.shape)
                return output
            finally:
                self._outside = outside

        return run

    def _pin_whole(self, module: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """All channels of a layer stay whose class takes or returns several tensors, as octave convolutions."""
        reason = f"the class of {self._names[module]} takes or returns several tensors, which one layer does not"
        for labels in inputs:
            self._numbers.pin(labels, reason)
        width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        self._numbers.pin(self._written(module, width), reason)
        for value in filter(has_channels, outputs):
            self._labels[value] = self._numbers.pinned(reason).expand(value.shape)

    # What units do

    def _through(self, module: nn.Module, inputs: list[Tensor], output: Tensor) -> Tensor | None:
        """Channels of a unit's output, with what it reads and writes on record."""
        if module in self._sides:
            for labels in inputs:
                if self._numbers.is_stored(labels, BUFFER):
                    continue  # such as angles of positions
                self._record(module, 0, "in", self._numbers.read(labels, -1))
            return along(self._written(module, output.shape[-1]), output.shape, -1)
        if isinstance(module, nn.Embedding):
            return along(self._written(module, module.embedding_dim), output.shape, -1)
        labels = inputs[0]
        if isinstance(module, nn.Linear) and not varies(labels, -1) and lies_elsewhere(labels):
            self._operators.moved = True  # torch-pruning would take positions for channels
            self._numbers.pin(self._written(module, module.out_features), "it mixes positions, and no channels")
            self._mixing[module] = labels
            return labels.narrow(-1, 0, 1).expand(output.shape)
        if isinstance(module, nn.Linear):
            self._record(module, 0, "in", self._numbers.read(labels, -1))
            return along(self._written(module, module.out_features), output.shape, -1)
        if isinstance(module, nn.modules.conv._ConvNd):
            axis = labels.ndim - len(module.kernel_size) - 1
            numbers = self._numbers.read(labels, axis)
            if module.groups == module.in_channels == module.out_channels and module.groups > 1:
                self._record(module, 0, "out", numbers)
                return along(numbers, output.shape, axis)
            if is_multiplied(module) and not self._numbers.are_pinned(numbers):
                self._operators.moved = True  # torch-pruning would take the outputs for channels of their own
                numbers = numbers.repeat_interleave(module.out_channels // module.in_channels)
                self._record(module, 0, "out", numbers)
                return along(numbers, output.shape, axis)
            if module.groups > 1:  # the nth channels of all groups go together
                self._numbers.tie_rows(numbers.view(module.groups, -1))
            self._record(module, 0, "in", numbers)
            written = self._written(module, module.out_channels)
            if module.groups > 1:
                self._numbers.tie_rows(written.view(module.groups, -1))
            return along(written, output.shape, axis)
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return labels
        axis = self._axis(module, labels)
        if axis is None:
            return self._numbers.pin(labels, f"{self._names[module]} normalises several dimensions at once")
        numbers = self._numbers.read(labels, axis)
        if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
            self._numbers.tie_rows(numbers.view(module.num_groups, -1))
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
        varied = [dim for dim in fits if varies(labels, dim)]
        return (varied or fits)[-1]

    def _written(self, module: nn.Module, width: int) -> Tensor:
        """The numbers of a layer's output channels, the same in all its calls."""
        if module not in self._outputs:
            self._outputs[module] = self._numbers.new(width)
            self._record(module, 0, "out", self._outputs[module])
        return self._outputs[module]

    def _record(self, target: nn.Module | str, dim: int, side: str, numbers: Tensor) -> None:
        known = self._records.setdefault((target, dim, side), numbers)
        if known is not numbers and known.shape == numbers.shape:
            self._numbers.tie(known, numbers)  # it runs again, and reads the same entries
            if bool((known == FREE).any()):  # such as zeros, before a recurrent layer has given anything
                self._records[target, dim, side] = torch.where(known == FREE, numbers, known)
        elif known.shape != numbers.shape:
            self._numbers.pin(torch.cat([known, numbers]), f"{self._running[-1]} reads inputs of several widths")

    # What operators do

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self._outside:
            with _disable_current_modes():
                self._operators.follow(func, args, kwargs, output)
        return output

    # What follows for groups

    def _settle(self) -> None:
        """Tie what has to stay rectangular, and number the classes of channels that go together."""
        stored = self._numbers.stored()
        for name, (dim, numbers) in stored.items():
            self._record(name, dim, "out", numbers)
        self._operators.settle()
        self._class = self._numbers.settle()
        self._stay = self._numbers.reasons(self._class)
        self._pairs = {key: classed(numbers, self._class).numpy() for key, numbers in self._records.items()}
        self._places: dict[int, dict[Any, None]] = {}  # class -> the keys of what has an entry in it, in order
        for key, classes in self._pairs.items():
            for number in np.unique(classes).tolist():
                self._places.setdefault(number, {})[key] = None
        self._rank = {key: rank for rank, key in enumerate(self._pairs)}
        self._overlooked = any(self._is_overlooked(name, dim) for name, (dim, _) in stored.items())

    def _is_overlooked(self, name: str, dim: int) -> bool:
        """Whether a stored tensor loses entries with a layer's channels, and torch-pruning would cut others, or none.

        It knows no buffers, and takes the last dimension of a parameter for that of its channels.
        """
        tensors = dict(self._model.named_parameters())
        if name in tensors and dim == _long(tensors[name])[-1]:
            return False
        going = set(self._pairs[name, dim, "out"].tolist()) - self._stay.keys()
        return any(isinstance(target, nn.Module) for number in going for target, *_ in self._places[number])

    # What is asked

    def runs(self, module: nn.Module) -> bool:
        """Whether a layer takes part in the forward pass."""
        return module in self._outputs or (module, 0, "out") in self._records

    @property
    def rearranges(self) -> bool:
        """Whether channels are split or moved before a layer reads them, or lie in tensors that only the flow knows."""
        return self._operators.moved or self._overlooked

    def refusal(self, module: nn.Module) -> str | None:
        """Why the channels of a layer have to stay; None where they can go."""
        if not self.runs(module):
            return "it takes no part in the forward pass, or the trace does not see it"
        channels = self._pairs[(module, 0, "out")].tolist()
        return next((self._stay[channel] for channel in channels if channel in self._stay), None)

    def size(self, target: nn.Module | str, dim: int, side: str) -> int:
        """Number of entries of a module's side, or of a parameter or buffer."""
        return len(self._pairs[(target, dim, side)])

    def lengths(self, gone: Mapping[tuple[nn.Module | str, int, str], Collection[int]]) -> dict[str, dict[int, int]]:
        """How long the parts of tensors are before and after a removal, by the module that splits them.

        Args:
            gone: entries that are removed, by (module or parameter, dimension, side).
        """
        classes = {int(self._pairs[key][index]) for key, entries in gone.items() for index in entries}
        lengths: dict[str, dict[int, int]] = {}
        for part in self._operators.parts:
            for labels in part.labels:
                entries = classed(labels, self._class).movedim(part.dim, 0).flatten(1).amax(1).tolist()
                remaining = sum(entry not in classes for entry in entries)
                sizes = lengths.setdefault(part.owner, {})
                sizes[len(entries)] = remaining if sizes.get(len(entries), remaining) == remaining else len(entries)
        return lengths

    def mixers(self) -> dict[str, tuple[str, int]]:
        """By the weight of a layer that mixes positions: a tensor and dimension of the channels along its own."""
        tensors: dict[tuple[int, ...], tuple[str, int]] = {}
        for (target, dim, side), classes in self._pairs.items():
            if isinstance(target, str):
                tensors.setdefault(tuple(classes), (target, dim))
            elif isinstance(target, PRODUCTS) and (side == "out" or getattr(target, "groups", 1) == 1):
                dim = output_dim(target) if side == "out" else 1 - output_dim(target)
                tensors.setdefault(tuple(classes), (f"{self._names[target]}.weight", dim))
        mixers = {}
        for module, labels in self._mixing.items():
            now = classed(labels, self._class)
            dims = [dim for dim in range(now.ndim) if varies(now, dim)]
            channels = tuple(now.movedim(dims[0], 0).flatten(1)[:, 0].tolist()) if len(dims) == 1 else ()
            if channels in tensors:
                mixers[f"{self._names[module]}.weight"] = tensors[channels]
        return mixers

    def items(self, module: nn.Module) -> list[tuple[nn.Module | str, int, str, Channels]]:
        """The modules, parameters and buffers that lose entries with a layer's channels.

        Returns:
            (module, or name of a parameter or buffer; its dimension; side; entries by channel).

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


def _long(tensor: Tensor) -> list[int]:
    """The dimensions of a tensor with more than one entry."""
    return [dim for dim, size in enumerate(tensor.shape) if size > 1]
