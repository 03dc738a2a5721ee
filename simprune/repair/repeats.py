"""Layers that run more than once: their inputs and outputs in all calls, for a fit to all of them together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import first_tensor
from simprune.core.cost import Example
from simprune.repair.ridge import Ridge, fit
from simprune.trace.context import eval_mode
from simprune.trace.execution import Execution
from simprune.trace.hooks import hooks
from simprune.trace.layers import channel_dim, matrix_of, positions, weight_of

INERT = 1e-10  # share of the variance: rounding errors are below this
STEPS = (1.0, 0.5, 0.25)  # shares of the way to the fit; the first that improves is taken


@dataclass(frozen=True)
class Repeat:
    """A layer that runs more than once, or with a weight that other layers of its kind multiply with as well.

    `modules`: the layer, and the others that have its weight and bias. `norms`: the BatchNorms whose running means can
    hold an intercept of all of them.
    """

    modules: tuple[str, ...]
    norms: tuple[str, ...] = ()


def calls_of(model: nn.Module, modules: Sequence[str], calls: Sequence[Example]) -> list[list[tuple[Tensor, Tensor]]]:
    """(input, output) of every call of some layers, in order of execution, for every call of the model."""
    passes: list[list[tuple[Tensor, Tensor]]] = []

    def see(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        x = first_tensor((args, kwargs))
        assert x is not None
        passes[-1].append((x.clone(), output.clone()))  # later modules may work in place

    watched: list[tuple[nn.Module, Any]] = [(model.get_submodule(name), partial(see)) for name in modules]
    with eval_mode(model), torch.no_grad(), hooks(after=watched):
        for args, kwargs in calls:
            passes.append([])
            model(*args, **kwargs)
    return passes


@torch.no_grad()
def fit_repeat(
    small: nn.Module,
    repeat: Repeat,
    means: Sequence[Tensor],
    current: Callable[[], list[tuple[Tensor, Tensor]]],
    wanted: Sequence[Tensor],
    ridge: Ridge,
    held: Sequence[Tensor] | None = None,
) -> tuple[float, float, float | None]:
    """Refit a layer, in place, to the outputs that are wanted in all its calls.

    Where a call's input depends on earlier calls, the fit moves the inputs that it was fitted to. The weights then go
    towards the fit by the first of `STEPS` with which all calls together come nearer, or stay.

    Args:
        small: the network.
        repeat: the layer.
        means: of every BatchNorm of `repeat`, the running mean without any intercept.
        current: returns (input, output) of every call, with the weights as they are.
        wanted: the output wanted in every call.
        ridge: of the fit.
        held: rows of every call that are held out, as of `simprune.repair.ridge.fit`.

    Returns:
        The squared error of all calls relative to the variance of what is wanted, before and after; the ridge.
    """
    layer, norms = small.get_submodule(repeat.modules[0]), [small.get_buffer(f"{n}.running_mean") for n in repeat.norms]
    weight, bias = layer.get_parameter("weight"), getattr(layer, "bias", None)

    def offset() -> Tensor:
        """What is added to the outputs behind the layer by the BatchNorms' means."""
        return (means[0] - norms[0]).double() if bias is None and norms else torch.zeros(1, device=weight.device)

    def change(matrix: Tensor, intercept: Tensor) -> None:
        weight.copy_(weight_of(layer, matrix))
        if bias is not None:
            bias.copy_(intercept)
            return
        for mean, norm in zip(means, norms, strict=True):
            norm.copy_(mean - intercept)

    def error(seen: Sequence[tuple[Tensor, Tensor]]) -> float:
        shift = offset().view([-1] + [1] * (seen[0][1].ndim - 2) if channel_dim(layer) == 1 else [-1])
        left = ((output + shift - target).square().sum() for (_, output), target in zip(seen, wanted, strict=True))
        return sum(map(float, left))

    seen = current()
    total = torch.cat([positions(layer, target).transpose(0, 1).flatten(1) for target in wanted], 1).double()
    spread = float((total - total.mean(1, keepdim=True)).square().sum()) or 1.0
    before = error(seen)
    if before <= INERT * spread:  # nothing before it has changed
        return before / spread, before / spread, None
    pairs = [(x, target) for (x, _), target in zip(seen, wanted, strict=True)]
    solved = fit(layer, pairs, ridge, bias is not None or bool(norms), held)
    old = matrix_of(layer).double(), offset() if bias is None else bias.double()
    new = solved.matrix, solved.intercept
    for step in STEPS:
        change(*(a + step * (b - a) for a, b in zip(old, new, strict=True)))
        best = error(current())
        if best < before:
            return before / spread, best / spread, solved.ridge
    change(*old)
    return before / spread, before / spread, solved.ridge


def repeated(
    small: nn.Module, pruned: Execution, original: Execution, dropped: Sequence[str] = ()
) -> tuple[dict[str, Repeat], dict[str, str]]:
    """Which layers can be refitted to several calls together, and which cannot be refitted at all.

    Args:
        small: the pruned network.
        pruned: its layers.
        original: those of the original.
        dropped: modules of the original that are no part of the pruned network, with all that is in them.

    Returns:
        Layer -> its calls' modules, by the module that runs first; layer -> the reason why it is left alone.
    """
    repeats: dict[str, Repeat] = {}
    alone: dict[str, str] = {}
    done: set[str] = set()
    for name in dict.fromkeys(pruned.calls):
        others = {*pruned.elsewhere.get(name, ()), *original.elsewhere.get(name, ())}
        others = {other for other in others if not _inside(other, dropped)} - {name}
        modules = (name, *sorted(others, key=lambda other: pruned.calls.index(other) if other in pruned.calls else -1))
        if name in done or (len(modules) == 1 and pruned.calls.count(name) == original.calls.count(name) == 1):
            continue
        reason = _reason(small, modules, pruned, original)
        if reason:
            alone[name] = reason
            continue
        done.update(modules)
        norms = dict.fromkeys(norm for module in modules for norm in pruned.means.get(module, ()))
        whole = all(module in pruned.means for module in modules)
        repeats[name] = Repeat(modules, tuple(norms) if whole else ())
    return repeats, alone


def _reason(small: nn.Module, modules: Sequence[str], pruned: Execution, original: Execution) -> str:
    """Why a weight cannot be refitted for all modules that use it; empty where it can."""
    name, others = modules[0], modules[1:]
    told = " and ".join(other or "the model itself" for other in others)
    if any(other not in pruned.calls for other in others):
        return f"its weight is also used by {told}, which no refit of {name} fits"
    if any(set(pruned.elsewhere.get(module, ())) != {*modules} - {module} for module in modules if others):
        return f"its weight is also used by {told}, and not in the same way by all of them"
    first, *rest = (small.get_submodule(module) for module in modules)
    same = [type(other) is type(first) and other.extra_repr() == first.extra_repr() for other in rest]
    if not all(same) or any(getattr(other, "bias", None) is not getattr(first, "bias", None) for other in rest):
        return f"its weight is also used by {told}, which adds another bias or reads another window"
    if any(pruned.calls.count(module) != original.calls.count(module) for module in modules):
        return "it runs less often than in the original, because a block around one of its calls is gone"
    return ""


def _inside(name: str, blocks: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{block}.") for block in blocks)
