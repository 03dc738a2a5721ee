"""Closed-form repair: refit layers in order of execution so that they give what the original's gave."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from simprune.core.batches import checked
from simprune.core.names import did_you_mean
from simprune.core.plan import Method, Plan
from simprune.edit.compact import restored
from simprune.edit.effects import Effects, effects_of
from simprune.repair.fold import fold
from simprune.repair.refit import VALUES, Refit, Repair
from simprune.repair.stand_ins import fit_stand_ins
from simprune.trace.execution import execution
from simprune.trace.layers import Ridge, output_dim
from simprune.trace.network import Network
from simprune.trace.shortcuts import find_shortcuts

METHODS = ("least_squares", "blockwise", "fold", "none")
REFITTING = ("least_squares", "blockwise")


def reconstruct(
    small: nn.Module,
    plan: Plan,
    network: Network,
    calibration: Iterable,
    method: Method = "least_squares",
    ridge: Ridge = "auto",
    values: int = VALUES,
    effects: Effects | None = None,
) -> list[Refit]:
    """Repair `small` in place, without labels, so that its layers reproduce those of the original `network`; maps and constants that
    stand in for blocks are fitted first.

    "least_squares": every convolution and linear layer behind the first edit is solved for the original's output given
    the inputs it gets in the pruned network, so errors of earlier layers are corrected and not passed on; the last
    layer of a residual block also takes back what the shortcut has lost. A convolution without bias puts its intercept
    into the BatchNorm behind it; a layer with neither is fitted through the origin. `ridge` is relative to the mean
    variance of the inputs; "auto" takes for every layer the one with which an eighth of the inputs, held out, is
    predicted best. Grouped convolutions, layers that run more than once, and subclasses that compute something else
    than a product with their weight stay as they are.

    "blockwise": after that, the layers of each residual block are fitted together, so that the kept units change as
    well (see `simprune.repair.gauss_newton`), on as many batches as give `values` entries of the block's output. No
    labels and no learning rate, but iterated: about five times the time.

    "fold": without data, removed channels are merged into similar ones (see `simprune.repair.fold`); no errors to
    report. "none": nothing.

    A mapping of patterns to these, as {"layer1.*": "none", "*": "blockwise"}, repairs layers and blocks differently:
    the first pattern that fits a name counts, and "least_squares" where none does.

    Cost: one forward pass of both networks over the calibration batches, plus one solve per layer, of as many unknowns
    as it has inputs x kernel, or rows where these are fewer. Raises ValueError for an unknown method, for a pattern
    that fits nothing, or when `small` does not come from `plan` and the network.
    """
    choice = Choice.of(method, network.model)
    plan.check(network.model)
    if not plan.edits or choice.everywhere("none"):
        return []
    effects = effects_of(plan, network) if effects is None else effects
    if choice.anywhere("fold"):
        fold(small, plan, network, effects, lambda layer: choice.method(layer) == "fold")
    if not (choice.anywhere("least_squares") or choice.anywhere("blockwise")):
        return []
    batches = list(checked(calibration, "calibration"))
    if not batches:
        raise ValueError("calibration has no batches; give at least one")
    fit_stand_ins(small, plan, network, batches, effects)
    with restored(small):  # layers that were deleted from their list are back, so that both networks' names agree
        return _refit_layers(small, network, effects, batches, choice, ridge, values)


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


def _refit_layers(
    small: nn.Module,
    network: Network,
    effects: Effects,
    batches: list,
    choice: Choice,
    ridge: Ridge,
    values: int,
) -> list[Refit]:
    order, normalisers = execution(small, network.example)
    behind = _behind_first_edit(order, network, effects)
    layers = [name for name in behind if choice.method(name) in REFITTING]
    shortcuts = find_shortcuts(small, network.block_calls, layers)
    together = {
        block: [name for name in order if name.startswith(f"{block}.") and choice.method(name) in REFITTING]
        for block in (shortcut.module for shortcut in shortcuts.values())
        if choice.method(block) == "blockwise"
    }
    repair = Repair(small, network.model, effects, normalisers, shortcuts, ridge, together, values)
    return repair.run(layers, batches, "reconstruct")


def _behind_first_edit(kept: Sequence[str], network: Network, effects: Effects) -> list[str]:
    """Layers that still run, from the first one whose input the plan changes."""

    def touched(name: str) -> bool:
        inputs = 1 - output_dim(network.model.get_submodule(name))
        return effects.inside_dropped(name) or (f"{name}.weight", inputs) in effects.removed

    first = next((index for index, name in enumerate(network.order) if touched(name)), len(network.order))
    behind = set(network.order[first:])
    return [name for name in kept if name in behind]
