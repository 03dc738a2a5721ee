"""Closed-form repair: refit layers in order of execution so that they give what the original's gave."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.batches import checked, copied, device_of, eval_mode, first_tensor, inputs_of, move
from simprune.cost import Example
from simprune.example import example_of, from_description
from simprune.names import did_you_mean
from simprune.planning.plan import Plan
from simprune.progress import progress
from simprune.surgery.compact import restored, uncached
from simprune.surgery.effects import Effects, effects_of
from simprune.surgery.execution import execution
from simprune.surgery.fold import fold
from simprune.surgery.gauss_newton import fit_block
from simprune.surgery.least_squares import Ridge, channel_dim, fit, matrix_of, output_dim
from simprune.surgery.lockstep import lockstep
from simprune.surgery.shortcuts import Shortcut, find_shortcuts

METHODS = ("least_squares", "blockwise", "fold", "none")
REFITTING = ("least_squares", "blockwise")
Method = str | Mapping[str, str]
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


def reconstruct(
    small: nn.Module,
    plan: Plan,
    model: nn.Module,
    calibration: Iterable,
    method: Method = "least_squares",
    ridge: Ridge = "auto",
    values: int = VALUES,
) -> list[Refit]:
    """Repair `small` in place, without labels, so that its layers reproduce those of `model`.

    "least_squares": every convolution and linear layer behind the first edit is solved for the original's output given
    the inputs it gets in the pruned network, so errors of earlier layers are corrected and not passed on; the last
    layer of a residual block also takes back what the shortcut has lost. A convolution without bias puts its intercept
    into the BatchNorm behind it; a layer with neither is fitted through the origin. `ridge` is relative to the mean
    variance of the inputs; "auto" takes for every layer the one with which an eighth of the inputs, held out, is
    predicted best. Grouped convolutions, and layers that run more than once, stay as they are.

    "blockwise": after that, the layers of each residual block are fitted together, so that the kept units change as
    well (see `simprune.surgery.gauss_newton`), on as many batches as give `values` entries of the block's output. No
    labels and no learning rate, but iterated: about five times the time.

    "fold": without data, removed channels are merged into similar ones (see `simprune.surgery.fold`); no errors to
    report. "none": nothing.

    A mapping of patterns to these, as {"layer1.*": "none", "*": "blockwise"}, repairs layers and blocks differently:
    the first pattern that fits a name counts, and "least_squares" where none does.

    Cost: one forward pass of both networks over the calibration batches, plus one (inputs x kernel)^2 covariance and
    solve per layer. Raises ValueError for an unknown method, for a pattern that fits nothing, or when `small` does not
    come from `plan` and `model`.
    """
    choice = Choice.of(method, model)
    plan.check(model)
    if not plan.edits or choice.everywhere("none"):
        return []
    if choice.anywhere("fold"):
        fold(small, plan, model, lambda layer: choice.method(layer) == "fold")
    if not (choice.anywhere("least_squares") or choice.anywhere("blockwise")):
        return []
    batches = list(checked(calibration, "calibration"))
    if not batches:
        raise ValueError("calibration has no batches; give at least one")
    # layers that were deleted from their list are back, so that both networks' names agree; blocks run more than once
    with restored(small), uncached(small), uncached(model):
        return _refit_layers(small, plan, model, batches, choice, ridge, values)


@dataclass(frozen=True)
class Choice:
    """How each layer or block is repaired: patterns of names with their methods, the first that fits counts."""

    rules: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, method: Method, model: nn.Module | None = None) -> "Choice":
        """ValueError for an unknown method, and for a pattern that fits no module of the model.

        >>> Choice.of({"layer1.*": "fold"}).method("layer1.0.conv1"), Choice.of("none").method("conv1")
        ('fold', 'none')
        """
        if not isinstance(method, str | Mapping):
            raise ValueError(f"reconstruct: expected a method, or patterns of names with methods; got {method!r}")
        rules = {"*": method} if isinstance(method, str) else {**method, "*": method.get("*", METHODS[0])}
        for pattern, each in rules.items():
            if each not in METHODS:
                raise ValueError(f"reconstruct: unknown method {each!r}; {did_you_mean(str(each), METHODS)}")
            if model is not None and not fnmatch.filter([name for name, _ in model.named_modules()], pattern):
                raise ValueError(f"reconstruct: no module fits the pattern {pattern!r}; see the names in the plan")
        return cls(tuple(rules.items()))

    def method(self, name: str) -> str:
        return next(method for pattern, method in self.rules if fnmatch.fnmatchcase(name, pattern))

    def anywhere(self, method: str) -> bool:
        return any(each == method for _, each in self.rules)

    def everywhere(self, method: str) -> bool:
        return all(each == method for _, each in self.rules)


@dataclass(frozen=True)
class _Repair:
    """Refitting of layers and blocks, given what they get in both networks."""

    small: nn.Module
    model: nn.Module
    effects: Effects
    normalisers: Mapping[str, str]
    shortcuts: Mapping[str, Shortcut]
    ridge: Ridge
    order: Sequence[str]  # of execution, all layers
    choice: Choice
    values: int  # outputs that a block is fitted to as a whole

    def layer(
        self, name: str, wanted: Sequence[Example], given: Sequence[Example], drifts: Sequence[Tensor] = ()
    ) -> Refit:
        """Refit one layer to the original's output, plus what the shortcut around it has lost."""
        layer, source = self.small.get_submodule(name), self.model.get_submodule(name)
        kept = torch.tensor(self._kept(name), device=device_of(self.small))
        pairs = []
        for place, (call, original) in enumerate(zip(given, wanted, strict=True)):
            target = source.forward(_input(original)).index_select(channel_dim(layer), kept)
            pairs.append((_input(call), target + drifts[place] if drifts else target))
        normaliser, bias = self.normalisers.get(name), getattr(layer, "bias", None)
        solved = fit(layer, pairs, self.ridge, intercept=bias is not None or normaliser is not None)
        solved.write(layer)
        if normaliser is not None and bias is None:
            mean = self.model.get_buffer(f"{normaliser}.running_mean")
            self.small.get_buffer(f"{normaliser}.running_mean").copy_(mean[kept] - solved.intercept)
        return Refit(name, solved.before, solved.after, solved.ridge)

    def block(
        self, name: str, layers: Sequence[str], wanted: Sequence[Example], given: Sequence[Example]
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
                refits.append(self.layer(layer, *calls, self._drifts(layer, wanted, given)))
        if self.choice.method(name) == "blockwise":
            refits.append(self._whole(name, wanted, given))
        return refits

    def _whole(self, name: str, wanted: Sequence[Example], given: Sequence[Example]) -> Refit:
        block, source = self.small.get_submodule(name), self.model.get_submodule(name)
        inside = [layer for layer in self.order if layer.startswith(f"{name}.")]
        layers = [layer for layer in inside if self.choice.method(layer) in REFITTING]
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
        return Refit(name, *fit_block(block, short, given[: len(targets)], targets))

    def _drifts(self, layer: str, wanted: Sequence[Example], given: Sequence[Example]) -> list[Tensor]:
        if layer not in self.shortcuts:
            return []
        rows = torch.tensor(self._kept(layer), device=device_of(self.small))
        pairs = zip(wanted, given, strict=True)
        return [self.shortcuts[layer].drift(original, call, rows) for original, call in pairs]

    def _kept(self, name: str) -> list[int]:
        """Outputs of the original's layer that the smaller one still has."""
        source = self.model.get_submodule(name)
        return self.effects.kept(f"{name}.weight", output_dim(source), matrix_of(source).shape[0])


def _input(call: Example) -> Tensor:
    found = first_tensor((*call[0], *call[1].values()))
    assert found is not None
    return found


def _refit_layers(
    small: nn.Module, plan: Plan, model: nn.Module, batches: list, choice: Choice, ridge: Ridge, values: int
) -> list[Refit]:
    example = from_description(plan.inputs, device_of(model))
    effects = effects_of(plan, model, example)
    order, normalisers = execution(small, example)
    behind = _behind_first_edit(order, model, example, effects)
    layers = [name for name in behind if choice.method(name) in REFITTING]
    shortcuts = find_shortcuts(small, model, example_of(batches[0]), layers)
    repair = _Repair(small, model, effects, normalisers, shortcuts, ridge, order, choice, values)
    units = _units(layers, [shortcut.module for shortcut in shortcuts.values()])
    calls = [[move(inputs_of(batch), device_of(net)) for batch in batches] for net in (model, small)]
    refits: list[Refit] = []
    with (
        lockstep(model, calls[0], [*units]) as original,
        lockstep(small, calls[1], [*units]) as pruned,
        torch.no_grad(),
    ):
        for unit, inside in progress(units.items(), "reconstruct"):
            wanted, given = original.advance(unit), pruned.advance(unit)
            if inside == [unit]:
                refits.append(repair.layer(unit, wanted, given))
            else:
                refits += repair.block(unit, inside, wanted, given)
    return refits


def _units(layers: Sequence[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """What is refitted in turn, in order of execution: a layer, or a block with its layers."""
    units: dict[str, list[str]] = {}
    for layer in layers:
        around = next((block for block in blocks if layer.startswith(f"{block}.")), layer)
        units.setdefault(around, []).append(layer)
    return units


def _behind_first_edit(kept: Sequence[str], model: nn.Module, example: Example, effects: Effects) -> list[str]:
    """Layers that still run, from the first one whose input the plan changes."""

    def touched(name: str) -> bool:
        inputs = 1 - output_dim(model.get_submodule(name))
        return effects.inside_dropped(name) or (f"{name}.weight", inputs) in effects.removed

    original = execution(model, example)[0]
    first = next((place for place, name in enumerate(original) if touched(name)), len(original))
    behind = set(original[first:])
    return [name for name in kept if name in behind]
