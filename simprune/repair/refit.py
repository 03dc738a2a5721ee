"""Refitting layers to the original's, one after another, each with what it gets in the network as it is by then."""

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
    """Refitting of layers and blocks in order of execution, each given what it gets in the networks as they are then.

    `together`: blocks whose layers, by name, are fitted as a whole at last. `values`: to how many outputs.
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
                wanted, given = original.advance(unit), pruned.advance(unit)
                if inside == [unit]:
                    refits.append(self._layer(unit, wanted, given, masks))
                else:
                    refits += self._block(unit, inside, wanted, given, masks)
        return refits

    def _layer(
        self,
        name: str,
        wanted: Sequence[Example],
        given: Sequence[Example],
        masks: Sequence[Tensor | None],
        drifts: Sequence[Tensor] = (),
    ) -> Refit:
        """Refit one layer to the original's output, plus what the shortcut around it has lost."""
        layer, source = self.small.get_submodule(name), self.model.get_submodule(name)
        kept = torch.tensor(self._kept(name), device=device_of(self.small))
        pairs = []
        for place, (call, original, mask) in enumerate(zip(given, wanted, masks, strict=True)):
            target = source.forward(_input(original)).index_select(channel_dim(layer), kept)
            target = target + drifts[place] if drifts else target
            pairs.append((_unpadded(_input(call), mask), _unpadded(target, mask)))
        normaliser, bias = self.normalisers.get(name), getattr(layer, "bias", None)
        solved = fit(layer, pairs, self.ridge, intercept=bias is not None or normaliser is not None)
        solved.write(layer)
        if normaliser is not None and bias is None:
            mean = self.model.get_buffer(f"{normaliser}.running_mean")
            self.small.get_buffer(f"{normaliser}.running_mean").copy_(mean[kept] - solved.intercept)
        return Refit(name, solved.before, solved.after, solved.ridge)

    def _block(
        self,
        name: str,
        layers: Sequence[str],
        wanted: Sequence[Example],
        given: Sequence[Example],
        masks: Sequence[Tensor | None],
    ) -> list[Refit]:
        """Refit the layers of a block in order, then all together."""
        block, source = self.small.get_submodule(name), self.model.get_submodule(name)
        inner = [layer.removeprefix(f"{name}.") for layer in layers]
        refits = []
        with (
            lockstep(source, map(copied, wanted), inner) as original,
            lockstep(block, map(copied, given), inner) as pruned,
        ):
            for layer, short in zip(layers, inner, strict=True):
                calls = original.advance(short), pruned.advance(short)
                refits.append(self._layer(layer, *calls, masks, self._drifts(layer, wanted, given)))
        if name in self.together:
            refits.append(self._whole(name, wanted, given, masks))
        return refits

    def _whole(
        self, name: str, wanted: Sequence[Example], given: Sequence[Example], masks: Sequence[Tensor | None]
    ) -> Refit:
        block, source = self.small.get_submodule(name), self.model.get_submodule(name)
        layers = self.together[name]
        kept = torch.tensor(self._kept(layers[-1]), device=device_of(self.small))
        channels = channel_dim(self.model.get_submodule(layers[-1]))
        targets: list[Tensor] = []
        with eval_mode(source):
            for args, kwargs in map(copied, wanted):
                output = first_tensor(source(*args, **kwargs))
                assert output is not None
                targets.append(output.index_select(channels, kept))
                if sum(target.numel() for target in targets) >= self.values:
                    break
        norms = {layer: self.normalisers.get(layer) for layer in layers}
        short = {
            layer.removeprefix(f"{name}."): norm and norm.removeprefix(f"{name}.") for layer, norm in norms.items()
        }
        counts = [_counts(target, mask) for target, mask in zip(targets, masks, strict=False)]
        return Refit(name, *fit_block(block, short, given[: len(targets)], targets, counts))

    def _drifts(self, layer: str, wanted: Sequence[Example], given: Sequence[Example]) -> list[Tensor]:
        if layer not in self.shortcuts:
            return []
        rows = torch.tensor(self._kept(layer), device=device_of(self.small))
        pairs = zip(wanted, given, strict=True)
        return [self.shortcuts[layer].drift(original, call, rows) for original, call in pairs]

    def _kept(self, name: str) -> list[int]:
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
    found = first_tensor((*call[0], *call[1].values()))
    assert found is not None
    return found


def _units(layers: Sequence[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """What is refitted in turn, in order of execution: a layer, or a block with its layers."""
    units: dict[str, list[str]] = {}
    for layer in layers:
        around = next((block for block in blocks if layer.startswith(f"{block}.")), layer)
        units.setdefault(around, []).append(layer)
    return units
