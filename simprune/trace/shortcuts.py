"""Shortcuts: what a residual block's output owes to its shortcut, and by which gain to the last layer inside.

The errors of earlier layers travel along the shortcut. A repair of the block's last layer can subtract them if it knows
what the shortcut carries, and by which factor the layer's output is scaled before the sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, device_of, first_tensor, tensors_in
from simprune.core.copies import fill, sharing
from simprune.core.cost import Example
from simprune.trace.axes import Axes, channels_last
from simprune.trace.bypass import Bypass
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.layers import PLAIN, channel_dim, matrix_of
from simprune.trace.precision import in_half, in_single, widened
from simprune.trace.rewritten import make_plain
from simprune.trace.visits import Visit


@dataclass(frozen=True)
class Shortcut:
    """A block whose output is a function of: what the shortcut carries + gain x output of a layer inside.

    Args:
        module: name of the block.
        gain: (channels,) of the layer's output.
        original: a copy of the original's block with all parameters zero, which returns what the shortcut carries.
        pruned: the same of the pruned network's block.
        axis: along which the channels of the block's output lie.
    """

    module: str
    gain: Tensor
    original: nn.Module
    pruned: nn.Module
    axis: int | None = None

    def drift(self, original: Example, pruned: Example, remaining: Tensor) -> Tensor:
        """(N, positions, channels) of what the pruned network's shortcut lacks of the original's, divided by the gain.

        Added to the target of the layer, it makes up for the loss.

        Args:
            original: arguments of the block in the original.
            pruned: its arguments in the pruned network.
            remaining: indices of the original's channels that the pruned network still has.
        """
        target, current = _output(self.original, original), _output(self.pruned, pruned)
        assert target is not None
        assert current is not None
        lost = channels_last(target, self.axis)[..., remaining] - channels_last(current, self.axis)
        gain = self.gain[remaining]
        return lost * torch.where(gain == 0, 0, 1 / gain)


class BlockCalls:
    """The composite modules of a model that run once, with their arguments, and what their shortcuts carry.

    The properties of a block are computed when they are first asked for, and then remembered.

    Args:
        model: the network.
        visits: of its modules (see `simprune.trace.visits.visit`).
        axes: of the network.
    """

    def __init__(self, model: nn.Module, visits: Mapping[str, Visit], axes: Axes) -> None:
        self.model, self.axes = model, axes
        composite = {name for name, module in model.named_modules() if [*module.children()]}
        self.calls = {name: seen.call for name, seen in visits.items() if seen.calls == 1 and name in composite}
        self._shapes = {name: seen.output.shape for name, seen in visits.items() if seen.output is not None}
        self._silent: dict[str, nn.Module | None] = {}
        self._gains: dict[tuple[str, str], Tensor | None] = {}

    def silent(self, name: str) -> nn.Module | None:
        """A copy of a block with all parameters zero, which returns what its shortcut carries; None without one."""
        if name not in self._silent:
            silent = zero_copy(self.model.get_submodule(name))
            with torch.no_grad():
                past = _output(silent, self.calls[name])
            carries = past is not None and past.shape == self._shapes.get(name) and bool(past.any())
            self._silent[name] = silent if carries else None
        return self._silent[name]

    def summand(self, name: str, layer: str) -> int | str | None:
        """Which argument of a block is added to a layer's output right before a normalisation, as in BERT.

        It is given by its position or its name; None where there is none.
        """
        tensors = [value for value in tensors_in(self.calls[name]) if value.is_floating_point()]
        if all(value.shape != self._shapes.get(layer) for value in tensors):
            return None
        block, call = self.model.get_submodule(name), copied(self.calls[name])
        if in_half(block):  # sums are rounded
            block, call = in_single(block), widened(call)
        outputs: list[Tensor] = []
        inputs: list[Tensor | None] = []
        norms = [part for part in block.modules() if [*part.parameters()] and _only_scales(part)]
        before = [(norm, lambda _, args, kwargs: inputs.append(first_tensor((args, kwargs)))) for norm in norms]
        module = block.get_submodule(layer.removeprefix(f"{name}."))
        after = [(module, lambda _, args, kwargs, output: outputs.append(output))]
        with eval_mode(block), torch.no_grad(), hooks(before, after):
            block(*call[0], **call[1])
        rest = [value - outputs[-1] for value in inputs if value is not None and value.shape == outputs[-1].shape]
        for key, value in [*enumerate(call[0]), *call[1].items()]:
            if isinstance(value, Tensor) and value.is_floating_point() and value.any():
                slack = 1e-5 * float(value.abs().max())
                if any(value.shape == other.shape and (value - other).abs().max() <= slack for other in rest):
                    return key
        return None

    def gain(self, name: str, layer: str) -> Tensor | None:
        """(channels,) factor by which a layer's output enters the output of a block around it; None if unclear."""
        if (name, layer) not in self._gains:
            short = layer.removeprefix(f"{name}.")
            axis = self.axes.of(name, "output")
            self._gains[name, layer] = _gain(self.model.get_submodule(name), short, self.calls[name], axis)
        return self._gains[name, layer]


def find_shortcuts(small: nn.Module, blocks: BlockCalls, layers: Sequence[str]) -> dict[str, Shortcut]:
    """The shortcut that runs past a layer, for the last of `layers` in every innermost block that has a shortcut.

    Args:
        small: the pruned network.
        blocks: of the original.
        layers: names, in order of execution.

    Returns:
        Layer -> shortcut.
    """
    shortcuts: dict[str, Shortcut] = {}
    inside: set[str] = set()
    for name in sorted(blocks.calls, key=lambda name: -name.count(".")):  # innermost first
        own = [layer for layer in layers if layer.startswith(f"{name}.")]
        if not own or any(other.startswith(f"{name}.") for other in inside):
            continue
        silent = blocks.silent(name)
        if silent is None:
            key = blocks.summand(name, own[-1])
            if key is not None:  # up to the normalisation, the argument itself is what the shortcut carries
                inside.add(name)
                layer = blocks.model.get_submodule(own[-1])
                gain = torch.ones(len(matrix_of(layer)), device=device_of(small))
                shortcuts[own[-1]] = Shortcut(name, gain, Bypass(key), Bypass(key), channel_dim(layer))
            continue
        inside.add(name)
        gain = blocks.gain(name, own[-1])
        if gain is not None:
            axis = blocks.axes.of(name, "output")
            shortcuts[own[-1]] = Shortcut(name, gain, silent, zero_copy(small.get_submodule(name)), axis)
    return shortcuts


def _only_scales(module: nn.Module) -> bool:
    """Whether a module multiplies with no matrix, as a normalisation."""
    return all(parameter.ndim < 2 for parameter in module.parameters())


def _output(block: nn.Module, call: Example) -> Tensor | None:
    args, kwargs = copied(call)
    return first_tensor(block(*args, **kwargs))


def zero_copy(block: nn.Module) -> nn.Module:
    """A copy of a block with all parameters zero, in evaluation mode: it returns what the block's shortcut carries."""
    silent = sharing(block)
    make_plain(silent)  # a norm of zeros would divide by zero
    silent.eval()  # a statement of its own, because eval() of some foreign modules does not return the module
    for layer in silent.modules():
        if type(layer).forward in PLAIN:
            layer.forward = partial(_zeros, sharing(layer).to("meta"))
    for parameter in silent.parameters():
        fill(parameter, 0)
    return silent


def _zeros(layer: nn.Module, x: Tensor, *args: Any) -> Tensor:
    """What a layer without weights gives, of which only the shape is computed, by a copy on the meta device."""
    output = layer(x.to("meta"), *args)
    return torch.zeros_like(output, device=x.device)


def _gain(block: nn.Module, layer: str, call: Example, axis: int | None) -> Tensor | None:
    """(channels,) factor by which the layer's output enters the block's output, whose channels lie along `axis`.

    The two may have their channels along different dimensions, as where a block permutes maps for its linear layers.
    The factor is measured by adding a small constant to the layer's output. Entries behind a closed ReLU do not change
    and are ignored. A channel without any change has gain 0; None if the changes of a channel disagree.
    """
    if in_half(block):  # the small step would be lost in rounding
        block, call = in_single(block), widened(call)
    module, outputs = block.get_submodule(layer), []
    with torch.no_grad(), eval_mode(block):
        with hooks(after=[(module, lambda _, args, kwargs, output: outputs.append(output))]):
            rest = _output(block, call)
        if rest is None:
            return None
        shapes = channels_last(rest, axis).shape, channels_last(outputs[0], channel_dim(module)).shape
        if shapes[0] != shapes[1]:  # such as a layer that gives one factor per channel
            return None
        step = 1e-2 * outputs[0].abs().mean().clamp(min=1e-6)
        with hooks(after=[(module, lambda _, args, kwargs, output: output + step)]):
            moved = _output(block, call)
    assert moved is not None
    slope = channels_last((moved - rest) / step, axis).flatten(0, -2)
    moves = slope.abs() > 1e-3 * slope.abs().max()
    medians = torch.where(moves, slope, torch.nan).nanmedian(0).values
    gain = torch.where(moves.any(0), medians, 0)
    agree = moves & ((slope - gain).abs() <= 0.05 * gain.abs())
    # the step opens or closes the ReLU of some entries; most must agree
    if (agree.sum(0).double() / moves.sum(0) < 0.6).any():
        return None
    return torch.where(gain.abs() < 1e-2 * gain.abs().median(), 0, gain)
