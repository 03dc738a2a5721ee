"""Repair without labels: which method works where, and the methods one after another."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from simprune.core import registry
from simprune.core.batches import checked
from simprune.core.plan import Method, Plan
from simprune.core.registry import Part
from simprune.edit.compact import restored
from simprune.edit.effects import Effects, effects_of
from simprune.repair._task import Task
from simprune.repair.refit import Refit
from simprune.repair.stand_ins import fit_stand_ins
from simprune.trace.network import Network
from simprune.trace.rewritten import plain_norms

DEFAULT = "least_squares"


@dataclass(frozen=True)
class Rules:
    """How every layer or block is repaired.

    Args:
        methods: repair methods with their options, by patterns of names; the first pattern that fits a name counts.
    """

    methods: Mapping[str, tuple[Part, dict[str, Any]]]

    @classmethod
    def of(cls, method: Method, model: nn.Module | None = None) -> "Rules":
        """The rules of a method, of a method with options, or of patterns of names with methods.

        Raises:
            KeyError: for an unknown method.
            ValueError: for a choice of another form, and for a pattern that fits no module of the model.

        >>> Rules.of({"layer1.*": "fold"}).method("layer1.0.conv1")[0].name, Rules.of("none").method("fc")[0].name
        ('fold', 'none')
        """
        if not isinstance(method, str | Mapping):
            raise ValueError(f"reconstruct: expected a method, or patterns of names with methods; got {method!r}")
        choices: dict[str, Any] = {"*": method}
        if isinstance(method, Mapping) and "name" not in method:
            choices = {**method, "*": method.get("*", DEFAULT)}
        methods = {}
        for pattern, choice in choices.items():
            if model is not None and not fnmatch.filter([name for name, _ in model.named_modules()], pattern):
                raise ValueError(f"reconstruct: no module fits the pattern {pattern!r}; see the names in the plan")
            methods[pattern] = registry.read("repair", choice)
        return cls(methods)

    def method(self, name: str) -> tuple[Part, dict[str, Any]]:
        """The method of a layer or block, with its options."""
        return next(method for pattern, method in self.methods.items() if fnmatch.fnmatchcase(name, pattern))

    @property
    def active(self) -> list[tuple[Part, dict[str, Any]]]:
        """Every method and options once, in the order in which methods work; not what another method includes."""
        included = {name for part, _ in self.methods.values() for name in part.facts.get("includes", ())}
        active: list[tuple[Part, dict[str, Any]]] = []
        for method in self.methods.values():
            if method[0].name not in included and method not in active:
                active.append(method)
        return sorted(active, key=lambda method: method[0].facts.get("order", 1))

    @property
    def needs_data(self) -> bool:
        """Whether any method looks at calibration inputs."""
        return any(part.facts.get("data", True) for part, _ in self.active)

    @property
    def title(self) -> str:
        """What the row of a table is called behind the repair; empty where nothing is done."""
        titles = [part.facts.get("title", "repaired") for part, _ in self.active]
        return next(filter(None, reversed(titles)), "")

    def uses(self, method: tuple[Part, dict[str, Any]], included: Sequence[str], name: str) -> bool:
        """Whether a layer or block is repaired by a method, or by a method of one of the included names."""
        own = self.method(name)
        return own == method or own[0].name in included


def reconstruct(
    small: nn.Module,
    plan: Plan,
    network: Network,
    calibration: Iterable,
    method: Method = DEFAULT,
    effects: Effects | None = None,
    stand_ins: bool = True,
    notes: list[str] | None = None,
) -> list[Refit]:
    """Repair `small` in place, without labels, so that it answers like the original `network`.

    Args:
        small: what `apply` made of the plan.
        plan: the plan.
        network: the original.
        calibration: batches, walked once.
        method: one of `simprune list repairs`, a mapping with `name` and its options, or a mapping of patterns of names
            to these, as {"layer1.*": "none", "*": "blockwise"}: the first pattern that fits a name counts, and
            "least_squares" where none does.
        effects: of the plan, if they are known.
        stand_ins: whether maps and constants that replace blocks are fitted first; False where they are fitted.
        notes: to which a line is added for everything that a method leaves alone, with the reason.

    Returns:
        The errors of refitted layers and blocks before and after.

    Raises:
        KeyError: for an unknown method.
        ValueError: for a pattern that fits nothing, or when `small` does not come from `plan` and the network.
    """
    rules = Rules.of(method, network.model)
    plan.check(network.source)
    if not plan.edits or not rules.title:
        return []
    effects = effects_of(plan, network) if effects is None else effects
    batches = list(checked(calibration, "calibration")) if rules.needs_data else []
    if rules.needs_data and not batches:
        raise ValueError("calibration has no batches; give at least one")
    if rules.needs_data and stand_ins:
        fit_stand_ins(small, plan, network, batches, effects)
    refits: list[Refit] = []
    # Layers that were deleted from their list are back within `restored`, so that both networks' names agree.
    with plain_norms(small) as masked, restored(small):
        if notes is not None:
            notes.extend(f"{name} was not refitted: a mask of torch.nn.utils.prune is on it" for name in masked)
        for active in rules.active:
            part, options = active
            chosen, layers = (partial(rules.uses, active, names) for names in ((), part.facts.get("includes", ())))
            task = Task(small, plan, network, effects, batches, chosen, layers, [] if notes is None else notes)
            refits += part.make(task, **options)
    return refits
