"""What a function of `simprune.api` is given, checked as a whole before the first forward pass of the model."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from simprune.checks import Gate
from simprune.checks.sets import gates_of
from simprune.core import registry
from simprune.core.in_step import require_same
from simprune.core.names import did_you_mean
from simprune.core.peekable import Peekable
from simprune.core.plan import Plan
from simprune.core.weights import refuse_infinite
from simprune.measures import Measure
from simprune.planners.budget import MEASURED, Budget
from simprune.planners.constraints import RESIDUAL, Constraints
from simprune.repair.reconstruct import Rules
from simprune.repair.training.requirements import check as check_training
from simprune.scores.channels import refuse_wide
from simprune.settings import Planner, Settings
from simprune.trace.first_run import check_module, check_runs
from simprune.trace.offload import at_hand
from simprune.tune.frontier import check_shares

SMALLEST = "smallest"


@dataclass(frozen=True)
class Arguments:
    """A model, its data and the settings of one call; whatever can be known to be wrong has been said."""

    model: nn.Module
    calibration: Peekable
    train: Peekable | None
    test: Peekable | None
    settings: Settings
    plan: Plan | None = None
    validation: Peekable | None = None

    @classmethod
    def of(
        cls,
        command: str,
        model: nn.Module,
        calibration: Iterable,
        options: Mapping[str, Any],
        train: Iterable | None = None,
        test: Iterable | None = None,
        plan: Plan | None = None,
        validation: Iterable | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> "Arguments":
        """Raises TypeError for an unknown argument, ValueError or KeyError for a wrong one; runs nothing."""
        settings = Settings.of_command(command, options)
        check_module(model)
        if plan is None and set(settings.planner.protect) <= {RESIDUAL}:  # what is protected is not scored
            refuse_wide(model, settings.structures, settings.score)
        check_model(model, settings)
        model = at_hand(model)
        check_budget(settings.budget, settings.planner, command, test, plan)
        check_gates(settings.gates)
        if command == "frontier":
            check_shares(settings.kind, settings.budgets)
        if settings.rounds > 1:
            check_rounds(settings, plan)
        if plan is not None:
            plan.check(model)
        batches = Peekable(calibration, "calibration")
        train = None if train is None else Peekable(train, "train")
        test = None if test is None else Peekable(test, "test")
        validation = None if validation is None else Peekable(validation, "validation")
        tuned = settings.finetune is not None and settings.finetune.epochs
        if tuned and train is None:
            raise ValueError("finetune needs training batches; got none; give train=..., or leave finetune out")
        if settings.finetune is not None and tuned:
            check_training(settings.finetune, model, None if folder is None else Path(folder))
        return cls(model, batches, train, test, settings, plan, validation)

    def check_runs(self) -> None:
        """Raise ValueError unless the model runs on the first batch of all data that there are."""
        data = (self.calibration, self.train, self.test, self.validation)
        known = [batches for batches in data if batches is not None]
        require_same(self.model, *(batches for batches in known if batches is not self.train))  # which may be shuffled
        for batches in known:
            check_runs(self.model, batches.first, batches.name)

    @property
    def searching(self) -> bool:
        """Whether the smallest model that passes is wanted."""
        return self.settings.budget == SMALLEST

    @property
    def measure(self) -> Measure:
        return measure_of(self.settings.measure)


def measure_of(choice: Any) -> Measure:
    """The measure of a choice; a measure itself as it is."""
    return choice if isinstance(choice, Measure) else registry.bound("measure", choice)()


def check_model(model: Any, settings: Settings, name: str = "model") -> None:
    """Raise ValueError for what is no model, for weights that are no numbers, and for patterns that fit no name."""
    check_module(model, name)
    refuse_infinite(model, {key: value for key, value in model.named_parameters() if not value.is_meta}, name)
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    Constraints(settings.planner.protect).check_names(names)
    Rules.of(settings.reconstruct, model)


def check_budget(
    budget: Any, planner: Planner, command: str, test: Iterable | None = (), plan: Plan | None = None
) -> None:
    """Raise ValueError unless a command can work with the budget, the planner and the data that there are."""
    if isinstance(budget, str):
        if budget != SMALLEST:
            raise ValueError(f"budget: unknown {budget!r}; {did_you_mean(budget, [SMALLEST])}, or costs, as macs: 0.5")
        if command != "compress":
            raise ValueError("budget: smallest is searched by compress; for a plan give costs, as macs: 0.5")
        if plan is not None:
            raise ValueError("budget: smallest makes its own plans; leave out the plan, or give no budget")
        if test is None:
            raise ValueError("budget: smallest needs test batches to check on; give test=...")
        return
    if isinstance(budget, list | tuple):
        raise ValueError(f"budget: a list is for the frontier of `simprune plan`; {command} takes one, as macs: 0.5")
    if budget is not None and not isinstance(budget, Mapping):
        raise ValueError(f"budget: expected costs to keep, as macs: 0.5, a list of shares, or smallest; got {budget!r}")
    if planner.options.get("threshold") is not None:
        if any(limit is not None for limit in (budget or {}).values()):
            raise ValueError("planner threshold: give either a budget or a threshold, not both")
    elif budget is not None:
        Budget.of(budget)


def check_rounds(settings: Settings, plan: Plan | None) -> None:
    """Raise ValueError unless a network can be pruned in rounds with these settings."""
    budget = settings.budget or {}
    measured = [kind for kind in MEASURED if isinstance(budget, Mapping) and budget.get(kind) is not None]
    got = None
    if plan is not None:
        got = "a plan, which is followed at once"
    elif budget == SMALLEST:
        got = "budget smallest, which tries every budget on the original"
    elif settings.planner.options.get("threshold") is not None:
        got = "planner threshold"
    elif measured:
        got = f"a budget of {', '.join(measured)}"
    if got is not None:
        raise ValueError(f"rounds: expected a budget of macs, params or bytes; got {got}; leave rounds out")


def check_gates(gates: Any) -> list[Gate]:
    """The gates of an argument; KeyError for an unknown check set, ValueError for something else than gates."""
    return gates_of(gates)
