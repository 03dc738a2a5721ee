"""Repair without labels: which method works where, and the methods one after another."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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

DEFAULT = "least_squares"


@dataclass(frozen=True)
class Rule:
    """The repair method, with its options, of the modules whose names fit a pattern."""

    pattern: str
    part: Part
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Rules:
    """How every layer or block is repaired: of several rules that fit a name, the first counts."""

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, method: Method, model: nn.Module | None = None) -> "Rules":
        """The rules of a method, of a method with options, or of patterns of names with methods.

        Raises:
            KeyError: for an unknown method.
            ValueError: for a choice of another form, and for a pattern that fits no module of the model.

        >>> Rules.of({"layer1.*": "fold"}).rule("layer1.0.conv1").part.name, Rules.of("none").rule("fc").part.name
        ('fold', 'none')
        """
        if not isinstance(method, str | Mapping):
            raise ValueError(f"reconstruct: expected a method, or patterns of names with methods; got {method!r}")
        choices: dict[str, Any] = {"*": method}
        if isinstance(method, Mapping) and "name" not in method:
            choices = {**method, "*": method.get("*", DEFAULT)}
        rules = []
        for pattern, choice in choices.items():
            if model is not None and not fnmatch.filter([name for name, _ in model.named_modules()], pattern):
                raise ValueError(f"reconstruct: no module fits the pattern {pattern!r}; see the names in the plan")
            rules.append(Rule(pattern, *registry.read("repair", choice)))
        return cls(tuple(rules))

    def rule(self, name: str) -> Rule:
        """The rule for a layer or block."""
        return next(rule for rule in self.rules if fnmatch.fnmatchcase(name, rule.pattern))

    @property
    def active(self) -> list[Rule]:
        """One rule per method and options, in the order in which methods work; not what another one includes."""
        distinct = {(rule.part.name, repr(sorted(rule.options.items()))): rule for rule in self.rules}
        included = {name for rule in self.rules for name in rule.part.facts.get("includes", ())}
        used = [rule for rule in distinct.values() if rule.part.name not in included]
        return sorted(used, key=lambda rule: rule.part.facts.get("order", 1))

    @property
    def needs_data(self) -> bool:
        """Whether any method looks at calibration inputs."""
        return any(rule.part.facts.get("data", True) for rule in self.active)

    @property
    def title(self) -> str:
        """What the row of a table is called behind the repair; empty where nothing is done."""
        return next(
            (title for rule in reversed(self.active) if (title := rule.part.facts.get("title", "repaired"))), ""
        )


def reconstruct(
    small: nn.Module,
    plan: Plan,
    network: Network,
    calibration: Iterable,
    method: Method = DEFAULT,
    effects: Effects | None = None,
) -> list[Refit]:
    """Repair `small` in place, without labels, so that it answers like the original `network`.

    Maps and constants that stand in for blocks are fitted first.

    Args:
        small: what `apply` made of the plan.
        plan: the plan.
        network: the original.
        calibration: batches, walked once.
        method: one of `simprune list repairs`, a mapping with `name` and its options, or a mapping of patterns of names
            to these, as {"layer1.*": "none", "*": "blockwise"}: the first pattern that fits a name counts, and
            "least_squares" where none does.
        effects: of the plan, if they are known.

    Returns:
        The errors of refitted layers and blocks before and after.

    Raises:
        KeyError: for an unknown method.
        ValueError: for a pattern that fits nothing, or when `small` does not come from `plan` and the network.
    """
    rules = Rules.of(method, network.model)
    plan.check(network.model)
    if not plan.edits or not rules.title:
        return []
    effects = effects_of(plan, network) if effects is None else effects
    batches: list[Any] = []
    if rules.needs_data:
        batches = list(checked(calibration, "calibration"))
        if not batches:
            raise ValueError("calibration has no batches; give at least one")
        fit_stand_ins(small, plan, network, batches, effects)
    refits: list[Refit] = []
    task = Task(small, plan, network, effects, batches, chosen=lambda _: True, layers=lambda _: True)
    with restored(small):  # layers that were deleted from their list are back, so that both networks' names agree
        for rule in rules.active:
            refits += rule.part.make(_limited(task, rules, rule), **rule.options)
    return refits


def _limited(task: Task, rules: Rules, rule: Rule) -> Task:
    """The same task where the rules want the method of one of them."""
    included = rule.part.facts.get("includes", ())

    def chosen(name: str) -> bool:
        other = rules.rule(name)
        return other.part.name == rule.part.name and other.options == rule.options

    return replace(task, chosen=chosen, layers=lambda name: chosen(name) or rules.rule(name).part.name in included)
