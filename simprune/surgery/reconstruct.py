"""Closed-form repair: refit layers in order of execution so that they give what the original's gave."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from simprune.batches import checked, device_of, eval_mode, first_tensor
from simprune.example import from_description
from simprune.moments import Moments
from simprune.planning.plan import Plan
from simprune.surgery.effects import Effects, effects_of
from simprune.surgery.lockstep import lockstep

METHODS = ("least_squares", "none")
Refittable = nn.Linear | nn.Conv1d | nn.Conv2d


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
    the inputs it gets in the pruned network, so errors of earlier layers are corrected and not passed on. A
    convolution without bias puts its intercept into the BatchNorm behind it. `ridge` is relative to the mean variance
    of the inputs. Grouped convolutions stay as they are.

    Cost: one forward pass of both networks over the calibration batches, plus one (inputs x kernel)^2 covariance and
    solve per layer. Raises ValueError for an unknown method or when `small` does not come from `plan` and `model`.
    """
    if method not in METHODS:
        raise ValueError(f"reconstruct: method must be one of {', '.join(METHODS)}; got {method!r}")
    plan.check(model)
    if method == "none" or not plan.edits:
        return []
    example = from_description(plan.inputs, device_of(model))
    effects = effects_of(plan, model, example)
    order, normalisers = _execution(small, example)
    layers = _behind_first_edit(order, _execution(model, example)[0], effects)
    batches = list(checked(calibration, "calibration"))
    if not batches:
        raise ValueError("calibration has no batches; give at least one")
    refits = []
    with lockstep(model, batches, layers) as original, lockstep(small, batches, layers) as pruned:
        for name in track(layers, description="reconstruct", transient=True):
            targets, inputs = original.advance(name), pruned.advance(name)
            refits.append(_refit(name, small, model, effects, normalisers.get(name), inputs, targets, ridge))
    return refits


def _execution(model: nn.Module, example: tuple[tuple, dict]) -> tuple[list[str], dict[str, str]]:
    """Convolutions and linear layers in order of execution (those that run once), and the BatchNorm behind each."""
    order: list[str] = []
    made: dict[int, str] = {}
    normaliser: dict[str, str] = {}
    alive: list[Tensor] = []  # keeps ids unique while we look
    handles = []

    def hook(name: str, module: nn.Module):
        def see(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            value = first_tensor((*args, *kwargs.values()))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if id(value) in made:
                    normaliser[made[id(value)]] = name
            elif isinstance(output, Tensor):
                order.append(name)
                alive.append(output)
                made[id(output)] = name

        return see

    for name, module in model.named_modules():
        if isinstance(module, Refittable | nn.modules.batchnorm._BatchNorm):
            handles.append(module.register_forward_hook(hook(name, module), with_kwargs=True))
    try:
        args, kwargs = example
        with eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in order if order.count(name) == 1], normaliser


def _behind_first_edit(kept: Sequence[str], original: Sequence[str], effects: Effects) -> list[str]:
    """Layers that still run, from the first one whose input the plan changes."""

    def touched(name: str) -> bool:
        return effects.inside_dropped(name) or (f"{name}.weight", 1) in effects.removed

    first = next((place for place, name in enumerate(original) if touched(name)), len(original))
    behind = set(original[first:])
    return [name for name in kept if name in behind]


def _refit(
    name: str,
    small: nn.Module,
    model: nn.Module,
    effects: Effects,
    normaliser: str | None,
    inputs: Sequence[Tensor],
    original_inputs: Sequence[Tensor],
    ridge: float,
) -> Refit:
    layer, source = small.get_submodule(name), model.get_submodule(name)
    assert isinstance(layer, Refittable)
    assert isinstance(source, Refittable)
    kept = torch.tensor(effects.kept(f"{name}.weight", 0, len(source.weight)), device=layer.weight.device)
    width = layer.weight[0].numel()
    joint: Moments | None = None
    error = spread = 0.0
    with torch.no_grad():
        for x, original_x in zip(inputs, original_inputs, strict=True):
            wanted = _rows(layer, source.forward(original_x)).index_select(1, kept)
            error += float((_rows(layer, layer.forward(x)) - wanted).double().square().sum())
            if isinstance(layer, nn.Linear) or layer.groups == 1:
                found = Moments.of(torch.cat([_patches(layer, x), wanted], 1))
                joint = found if joint is None else joint.merge(found)
            spread += float((wanted - wanted.mean(0)).double().square().sum())
    if joint is None or (layer.bias is None and normaliser is None):
        return Refit(name, error / max(spread, 1e-30), error / max(spread, 1e-30))
    gram, cross = joint.scatter[:width, :width], joint.scatter[:width, width:]
    damping = ridge * gram.diagonal().mean() + 1e-12
    ridged = gram + damping * torch.eye(width, dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(ridged, cross).T
    explained = 2 * (weight * cross.T).sum() - (weight @ gram * weight).sum()
    residual = joint.scatter[width:, width:].diagonal().sum() - explained
    intercept = joint.mean[width:] - weight @ joint.mean[:width]
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(intercept)
        elif normaliser is not None:
            mean = model.get_buffer(f"{normaliser}.running_mean")
            small.get_buffer(f"{normaliser}.running_mean").copy_(mean[kept] - intercept)
    return Refit(name, error / max(spread, 1e-30), float(residual) / max(spread, 1e-30))


def _rows(layer: nn.Module, output: Tensor) -> Tensor:
    """Output of a layer as (rows, channels): one row per input and position."""
    channels_last = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
    return channels_last.flatten(0, -2)


def _patches(layer: Refittable, x: Tensor) -> Tensor:
    """(rows, inputs x kernel): what each row of the output is a linear function of."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    if isinstance(layer, nn.Conv1d):  # as an image of height one
        x = x.unsqueeze(2)
    kernel, dilation, stride = ((1, *values)[-2:] for values in (layer.kernel_size, layer.dilation, layer.stride))
    return F.unfold(x, kernel, dilation, 0, stride).transpose(1, 2).flatten(0, 1)
