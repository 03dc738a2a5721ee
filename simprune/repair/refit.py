"""Refitting layers in order of execution, so that every layer is fitted to inputs from layers that are refitted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import copied, device_of, first_tensor, inputs_of, mask_of, move
from simprune.core.cost import Example
from simprune.core.progress import progress
from simprune.edit.effects import Effects
from simprune.repair.gauss_newton import fit_block
from simprune.repair.lockstep import lockstep
from simprune.repair.ridge import Ridge, fit
from simprune.trace.context import eval_mode, uncached
from simprune.trace.layers import channel_dim, matrix_of, output_dim
from simprune.trace.shortcuts import Shortcut

VALUES = 2**23  # outputs that a block is fitted to as a whole: bounds time and memory


@dataclass(frozen=True)
class Refit:
    """Relative squared error of one layer or block against the original's output, before and after; the ridge used."""

    layer: str
    before: float
    after: float
    ridge: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Repair:
    """What refitting needs to know.

    Args:
        small: the pruned network, changed in place.
        model: the original.
        effects: of the plan.
        normalisers: layer -> the BatchNorm that reads it.
        shortcuts: layer -> the shortcut around its block.
        ridge: of the fit (see `simprune.repair.ridge`).
        together: block -> layers in it that are at last fitted together.
        values: number of output entries to which a block is fitted.
    """

    small: nn.Module
    model: nn.Module
    effects: Effects
    normalisers: Mapping[str, str]
    shortcuts: Mapping[str, Shortcut]
    ridge: Ridge
    together: Mapping[str, Sequence[str]] = field(default_factory=dict)
    values: int = VALUES

    def run(self, layers: Sequence[str], batches: Sequence[Any], title: str = "") -> list[Refit]:
        """Refit `layers`, which are in order of execution and run once, over the batches; progress under a title."""
        masks = [mask_of(batch) for batch in batches]
        calls = [[move(inputs_of(batch), device_of(net)) for batch in batches] for net in (self.model, self.small)]
        units = _units(layers, [shortcut.module for shortcut in self.shortcuts.values()])
        refits: list[Refit] = []
        with (
            uncached(self.model),  # blocks run more than once
            uncached(self.small),
            lockstep(self.model, calls[0], [*units]) as original,
            lockstep(self.small, calls[1], [*units]) as pruned,
            torch.no_grad(),
        ):
            for unit, inside in progress(units.items(), title) if title else units.items():
                originals, inputs = original.advance(unit), pruned.advance(unit)
                if inside == [unit]:
                    refits.append(self._layer(unit, originals, inputs, masks))
                else:
                    refits += self._block(unit, inside, originals, inputs, masks)
        return refits

    def _layer(
        self,
        name: str,
        originals: Sequence[Example],
        inputs: Sequence[Example],
        masks: Sequence[Tensor | None],
        drifts: Sequence[Tensor] = (),
    ) -> Refit:
        """Refit one layer to the original's output, plus what the shortcut around it has lost."""
        layer, source = self.small.get_submodule(name), self.model.get_submodule(name)
        remaining = torch.tensor(self._remaining(name), device=device_of(self.small))
        pairs = []
        for index, (call, original, mask) in enumerate(zip(inputs, originals, masks, strict=True)):
            target = source.forward(_input(original)).index_select(channel_dim(layer), remaining)
            target = target + drifts[index] if drifts else target
            pairs.append((_unpadded(_input(call), mask), _unpadded(target, mask)))
        normaliser, bias = self.normalisers.get(name), getattr(layer, "bias", None)
        solved = fit(layer, pairs, self.ridge, intercept=bias is not None or normaliser is not None)
        solved.write(layer)
        if normaliser is not None and bias is None:
            mean = self.model.get_buffer(f"{normaliser}.running_mean")
            self.small.get_buffer(f"{normaliser}.running_mean").copy_(mean[remaining] - solved.intercept)
        return Refit(name, solved.before, solved.after, solved.ridge)

    def _block(
        self,
        name: str,
        layers: Sequence[str],
        originals: Sequence[Example],
        inputs: Sequence[Example],
        masks: Sequence[Tensor | None],
    ) -> list[Refit]:
        """Refit the layers of a block in order, then all together."""
        block, source = self.small.get_submodule(name), self.model.get_submodule(name)
        inner = [layer.removeprefix(f"{name}.") for layer in layers]
        refits = []
        with (
            lockstep(source, map(copied, originals), inner) as original,
            lockstep(block, map(copied, inputs), inner) as pruned,
        ):
            for layer, short in zip(layers, inner, strict=True):
                calls = original.advance(short), pruned.advance(short)
                refits.append(self._layer(layer, *calls, masks, self._drifts(layer, originals, inputs)))
        if name in self.together:
            refits.append(self._whole(name, originals, inputs, masks))
        return refits

    def _whole(
        self, name: str, originals: Sequence[Example], inputs: Sequence[Example], masks: Sequence[Tensor | None]
    ) -> Refit:
        block, source = self.small.get_submodule(name), self.model.get_submodule(name)
        layers = self.together[name]
        remaining = torch.tensor(self._remaining(layers[-1]), device=device_of(self.small))
        channels = channel_dim(self.model.get_submodule(layers[-1]))
        targets: list[Tensor] = []
        with eval_mode(source):
            for args, kwargs in map(copied, originals):
                output = first_tensor(source(*args, **kwargs))
                assert output is not None
                targets.append(output.index_select(channels, remaining))
                if sum(target.numel() for target in targets) >= self.values:
                    break
        norms = {layer: self.normalisers.get(layer) for layer in layers}
        short = {
            layer.removeprefix(f"{name}."): norm and norm.removeprefix(f"{name}.") for layer, norm in norms.items()
        }
        counts = [_counts(target, mask) for target, mask in zip(targets, masks, strict=False)]
        return Refit(name, *fit_block(block, short, inputs[: len(targets)], targets, counts))

    def _drifts(self, layer: str, originals: Sequence[Example], inputs: Sequence[Example]) -> list[Tensor]:
        if layer not in self.shortcuts:
            return []
        rows = torch.tensor(self._remaining(layer), device=device_of(self.small))
        pairs = zip(originals, inputs, strict=True)
        return [self.shortcuts[layer].drift(original, call, rows) for original, call in pairs]

    def _remaining(self, name: str) -> list[int]:
        """Outputs of the original's layer that the smaller one still has."""
        source = self.model.get_submodule(name)
        return self.effects.remaining(f"{name}.weight", output_dim(source), matrix_of(source).shape[0])


def _counts(value: Tensor, mask: Tensor | None) -> Tensor | float:
    """0 for tokens of the padding, 1 for all else."""
    if mask is None or value.ndim != 3 or value.shape[:2] != mask.shape:
        return 1.0
    return mask.to(value)[..., None]


def _unpadded(value: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens (N, T, D) without the padding, as (tokens, D); anything else as it is."""
    if mask is None or value.ndim != 3 or value.shape[:2] != mask.shape:
        return value
    return value[mask.to(value.device)]


def _input(call: Example) -> Tensor:
    value = first_tensor((*call[0], *call[1].values()))
    assert value is not None
    return value


def _units(layers: Sequence[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """Block -> its layers, or layer -> itself where no block is around it, in order of execution."""
    units: dict[str, list[str]] = {}
    for layer in layers:
        around = next((block for block in blocks if layer.startswith(f"{block}.")), layer)
        units.setdefault(around, []).append(layer)
    return units
