"""Where a layer's output is added to something that runs past it, and by which gain.

In a residual block the errors of earlier layers travel along the shortcut. The last layer of the block can take them
back, when it is known what the shortcut carries and how the layer's output is scaled before the sum.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, first_tensor
from simprune.core.cost import Example
from simprune.trace.context import eval_mode, uncached
from simprune.trace.hooks import hooks


@dataclass(frozen=True)
class Shortcut:
    """Block `module`: its output is a function of (what passes by) + gain x (output of the layer); gain per channel.

    `passing` holds silent copies of the block, with all parameters zero, of the original and of the pruned network:
    what they return is what passes by.
    """

    module: str
    gain: Tensor
    original: nn.Module
    pruned: nn.Module

    def drift(self, original: Example, pruned: Example, kept: Tensor) -> Tensor:
        """What the pruned network's shortcut lacks of the original's, in units of the layer's output, given the
        arguments of the block in both."""
        passed, reached = _output(self.original, original), _output(self.pruned, pruned)
        assert passed is not None
        assert reached is not None
        lost = passed.movedim(_channel(passed), -1)[..., kept] - reached.movedim(_channel(reached), -1)
        gain = self.gain[kept]
        return (lost * torch.where(gain == 0, 0, 1 / gain)).movedim(-1, _channel(passed))


def _channel(value: Tensor) -> int:
    return 1 if value.ndim >= 4 else -1


class BlockCalls:
    """The composite modules of a model that run once, what they got, and how much of their output passes them by.

    Everything is worked out when it is first asked for.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self.calls = model, _calls(model, example)
        self._silent: dict[str, nn.Module | None] = {}
        self._gains: dict[tuple[str, str], Tensor | None] = {}

    def silent(self, name: str) -> nn.Module | None:
        """A copy of a block with all parameters zero, which gives what passes the block by; None if nothing does."""
        if name not in self._silent:
            block, silent = self.model.get_submodule(name), zero_copy(self.model.get_submodule(name))
            with torch.no_grad(), eval_mode(block):
                passed, output = _output(silent, self.calls[name]), _output(block, self.calls[name])
            carries = output is not None and passed is not None and passed.shape == output.shape and bool(passed.any())
            self._silent[name] = silent if carries else None
        return self._silent[name]

    def gain(self, name: str, layer: str) -> Tensor | None:
        """How much the output of a block moves with that of a layer inside it, per channel; None if unclear."""
        if (name, layer) not in self._gains:
            short = layer.removeprefix(f"{name}.")
            self._gains[name, layer] = _gain(self.model.get_submodule(name), short, self.calls[name])
        return self._gains[name, layer]


def find_shortcuts(small: nn.Module, blocks: BlockCalls, layers: Sequence[str]) -> dict[str, Shortcut]:
    """The shortcuts around the last of `layers` in each block: layer -> shortcut. `layers` in order of execution."""
    shortcuts: dict[str, Shortcut] = {}
    inside: set[str] = set()
    for name in sorted(blocks.calls, key=lambda name: -name.count(".")):  # innermost first
        own = [layer for layer in layers if layer.startswith(f"{name}.")]
        if not own or any(other.startswith(f"{name}.") for other in inside):
            continue
        silent = blocks.silent(name)
        if silent is None:
            continue
        inside.add(name)
        gain = blocks.gain(name, own[-1])
        if gain is not None:
            shortcuts[own[-1]] = Shortcut(name, gain, silent, zero_copy(small.get_submodule(name)))
    return shortcuts


def _calls(model: nn.Module, example: Example) -> dict[str, Example]:
    """Arguments of all composite modules that run once and give a tensor of numbers."""
    seen: dict[str, Example | None] = {}

    def before(name: str) -> Any:
        def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
            seen[name] = copied((args, kwargs)) if name not in seen else None

        return see

    composite = [(name, module) for name, module in model.named_modules() if name and [*module.children()]]
    args, kwargs = example
    with torch.no_grad(), eval_mode(model), uncached(model), hooks([(m, before(name)) for name, m in composite]):
        model(*args, **kwargs)
    return {name: call for name, call in seen.items() if call is not None}


def _output(block: nn.Module, call: Example) -> Tensor | None:
    args, kwargs = copied(call)
    return first_tensor(block(*args, **kwargs))


def zero_copy(block: nn.Module) -> nn.Module:
    """A copy with all parameters zero: what it returns is what passes by."""
    silent = copy.deepcopy(block)
    silent.eval()  # not every module's returns itself
    for parameter in silent.parameters():
        parameter.requires_grad_(False).zero_()
    return silent


def _gain(block: nn.Module, layer: str, call: Example) -> Tensor | None:
    """How much the block's output moves, per channel, with the layer's output; 0 where it does not, None if unclear.

    Found by adding a small constant to the layer's output; entries behind a closed ReLU do not move and are left out.
    """
    module, heard = block.get_submodule(layer), []
    with torch.no_grad(), eval_mode(block):
        with hooks(after=[(module, lambda _, args, kwargs, output: heard.append(output))]):
            rest = _output(block, call)
        if rest is None or rest.shape != heard[0].shape:  # such as one factor per channel
            return None
        step = 1e-2 * heard[0].abs().mean().clamp(min=1e-6)
        with hooks(after=[(module, lambda _, args, kwargs, output: output + step)]):
            moved = _output(block, call)
    assert moved is not None
    slope = ((moved - rest) / step).movedim(_channel(rest), -1).flatten(0, -2)
    moves = slope.abs() > 1e-3 * slope.abs().max()
    gain = torch.zeros_like(slope[0])
    for channel in range(len(gain)):
        values = slope[moves[:, channel], channel]
        if len(values):
            gain[channel] = values.median()
            agree = (values - gain[channel]).abs() <= 0.05 * gain[channel].abs()
            if agree.double().mean() < 0.6:  # some entries cross the ReLU on the way; most must agree
                return None
    return torch.where(gain.abs() < 1e-2 * gain.abs().median(), 0, gain)
