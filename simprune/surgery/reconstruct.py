"""Closed-form repair: refit layers in order of execution so that they give what the original's gave."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simprune.batches import checked, device_of
from simprune.cost import Example
from simprune.example import example_of, from_description
from simprune.planning.plan import Plan
from simprune.progress import progress
from simprune.surgery.compact import restored
from simprune.surgery.effects import Effects, effects_of
from simprune.surgery.execution import execution
from simprune.surgery.fold import fold
from simprune.surgery.least_squares import channel_dim, fit, matrix_of, output_dim
from simprune.surgery.lockstep import lockstep
from simprune.surgery.shortcuts import find_shortcuts

METHODS = ("least_squares", "fold", "none")


@dataclass(frozen=True)
class Refit:
    """One layer's relative squared error against the original's output, before and after."""

    layer: str
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def reconstruct(
    small: nn.Module,
    plan: Plan,
    model: nn.Module,
    calibration: Iterable,
    method: str = "least_squares",
    ridge: float = 1e-3,
) -> list[Refit]:
    """Refit `small` in place, without gradients, so that its layers reproduce those of `model`.

    "least_squares": every convolution and linear layer behind the first edit is solved for the original's output given
    the inputs it gets in the pruned network, so errors of earlier layers are corrected and not passed on; the last
    layer of a residual block also takes back what the shortcut has lost. A convolution without bias puts its intercept
    into the BatchNorm behind it; a layer with neither is fitted through the origin. `ridge` is relative to the mean
    variance of the inputs. Grouped convolutions, and layers that run more than once, stay as they are.

    "fold": without data, removed channels are merged into similar ones (see `simprune.surgery.fold`); no errors to
    report.

    Cost: one forward pass of both networks over the calibration batches, plus one (inputs x kernel)^2 covariance and
    solve per layer. Raises ValueError for an unknown method or when `small` does not come from `plan` and `model`.
    """
    if method not in METHODS:
        raise ValueError(f"reconstruct: method must be one of {', '.join(METHODS)}; got {method!r}")
    plan.check(model)
    if method == "none" or not plan.edits:
        return []
    if method == "fold":
        fold(small, plan, model)
        return []
    batches = list(checked(calibration, "calibration"))
    if not batches:
        raise ValueError("calibration has no batches; give at least one")
    with restored(small):  # layers that were deleted from their list are back, so that both networks' names agree
        return _refit_layers(small, plan, model, batches, ridge)


def _refit_layers(small: nn.Module, plan: Plan, model: nn.Module, batches: list, ridge: float) -> list[Refit]:
    example = from_description(plan.inputs, device_of(model))
    effects = effects_of(plan, model, example)
    order, normalisers = execution(small, example)
    layers = _behind_first_edit(order, model, example, effects)
    shortcuts = find_shortcuts(small, model, example_of(batches[0]), layers)
    around = [shortcut.module for shortcut in shortcuts.values()]
    refits = []
    with lockstep(model, batches, layers, around) as original, lockstep(small, batches, layers, around) as pruned:
        for name in progress(layers, "reconstruct"):
            layer, source = small.get_submodule(name), model.get_submodule(name)
            width = matrix_of(source).shape[0]
            rows = torch.tensor(effects.kept(f"{name}.weight", output_dim(source), width), device=device_of(small))
            targets, inputs = original.advance(name), pruned.advance(name)
            shortcut = shortcuts.get(name)
            drifts: list[Tensor | None] = [None] * len(inputs)
            if shortcut is not None:
                entered = zip(original.entered(shortcut.module), pruned.entered(shortcut.module), strict=True)
                drifts = [shortcut.drift(*pair, rows) for pair in entered]
            with torch.no_grad():
                biased = getattr(layer, "bias", None) is not None
                pairs = _pairs(layer, source, inputs, targets, drifts, rows)
                solved = fit(layer, pairs, ridge, intercept=biased or name in normalisers)
                solved.write(layer)
                if name in normalisers and not biased:
                    mean = model.get_buffer(f"{normalisers[name]}.running_mean")
                    small.get_buffer(f"{normalisers[name]}.running_mean").copy_(mean[rows] - solved.intercept)
            refits.append(Refit(name, solved.before, solved.after))
    return refits


def _pairs(
    layer: nn.Module,
    source: nn.Module,
    inputs: Sequence[Tensor],
    original_inputs: Sequence[Tensor],
    drifts: Sequence[Tensor | None],
    kept: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (what the layer gets, what it should give)."""
    for x, original, drift in zip(inputs, original_inputs, drifts, strict=True):
        wanted = source.forward(original).index_select(channel_dim(layer), kept)
        yield x, wanted if drift is None else wanted + drift


def _behind_first_edit(kept: Sequence[str], model: nn.Module, example: Example, effects: Effects) -> list[str]:
    """Layers that still run, from the first one whose input the plan changes."""

    def touched(name: str) -> bool:
        inputs = 1 - output_dim(model.get_submodule(name))
        return effects.inside_dropped(name) or (f"{name}.weight", inputs) in effects.removed

    original = execution(model, example)[0]
    first = next((place for place, name in enumerate(original) if touched(name)), len(original))
    behind = set(original[first:])
    return [name for name in kept if name in behind]
