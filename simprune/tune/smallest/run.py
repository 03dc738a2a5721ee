"""The search: budget after budget, a plan is made, followed and checked; the smallest model that passed is returned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from simprune.checks import Verdict
from simprune.core.plain import finite
from simprune.core.plan import Plan
from simprune.core.progress import say
from simprune.core.weights import digest
from simprune.repair.recovery import Recovered, Recovery
from simprune.repair.stages import StageTable
from simprune.trace.network import Network
from simprune.tune.smallest.record import Record
from simprune.tune.smallest.steps import Attempt, SearchSettings, next_budget


@dataclass(frozen=True)
class Smallest:
    """The smallest model that passed, repaired and trained; `steps`: of the search, `best`: the index of its step."""

    followed: Recovered
    plan: Plan
    verdict: Verdict
    steps: tuple[Attempt, ...]
    best: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of its stages."""
        return [dict(row) for row in self.steps[self.best].rows]


class NothingPassed(Exception):
    """No smaller model passed, or not even the original; `steps` and the last `verdict` say why."""

    def __init__(self, message: str, steps: Sequence[Attempt], verdict: Verdict) -> None:
        super().__init__(message)
        self.steps, self.verdict = tuple(steps), verdict
        self.report: dict[str, Any] = {}


@dataclass(frozen=True)
class Procedure:
    """How one budget is tried; the same for all budgets of a search.

    `choose`: makes the plan for a share of the cost, or raises ValueError where the share cannot be reached.
    `recovery`: repairs and trains. `judge`: checks a model. `stages`: a table with the original as its first row.
    """

    network: Network
    choose: Callable[[float], Plan]
    recovery: Recovery
    judge: Callable[[nn.Module], Verdict]
    stages: StageTable
    search: SearchSettings

    def of(self, budget: float, steps: Sequence[Attempt]) -> tuple[Attempt, nn.Module]:
        """Try one budget after these steps; the first step tries the original. Returns the step and its model."""
        if not steps:
            self.choose(1.0)  # wrong arguments raise here, so that later errors are about the budget
            verdict = self.judge(self.network.model)
            passed = self.search.passes(verdict.outcome)
            rows = [row | {"latency_ms": None} for row in self.stages.rows[:1]]
            return Attempt(1.0, 1.0, verdict.outcome, passed, verdict=verdict.to_dict(), rows=rows), self.network.model
        try:
            plan = self.choose(budget)
        except ValueError as error:
            return Attempt(budget, budget, "unreachable", False, str(error)), self.network.model
        figure = "latency_ms" if self.search.kind == "latency" else self.search.kind
        kept = plan.expected[figure] / (plan.original[figure] or 1)
        content = plan.to_dict()
        for index, other in enumerate(steps):
            if other.plan is not None and _removed(other.plan) == _removed(content):
                same = replace(other, budget=budget, kept=kept, reason=f"as step {index}", same_as=index, plan=None)
                return same, self.network.model
        stages = self.stages.untimed()
        followed = self.recovery.follow(plan, self.network, stages.add)
        verdict = self.judge(followed.model)
        passed = self.search.passes(verdict.outcome)
        step = Attempt(
            budget, kept, verdict.outcome, passed, "", None, content, verdict.to_dict(),
            stages.rows, finite(followed.repairs), finite(followed.epochs),
        )  # fmt: skip
        return step, followed.model


def smallest(trial: Procedure, settings: Mapping[str, Any], record: Record | None = None) -> Smallest:
    """The smallest model that passes, by bracketing and bisection over the share of the cost.

    Passing is taken to be monotone: nothing smaller than a model that failed is tried.

    Args:
        trial: how one budget is tried.
        settings: of the run, by which a stored search is recognised as the same.
        record: the folder to which every finished step is written; the steps that it already holds are not repeated.

    Raises:
        NothingPassed: when no model smaller than the original passes.
        ValueError: when nothing can be removed, or the folder holds another search.
    """
    original = {"weights": digest(trial.network.model), "accuracy": trial.stages.rows[0]["accuracy"]}
    settings = {**settings, "original": original}
    steps = [] if record is None else record.load(settings)
    best = max((index for index, step in enumerate(steps) if step.passed), default=None)
    model: nn.Module | None = None
    while (budget := next_budget(steps, trial.search.tolerance)) is not None:
        step, tried = trial.of(budget, steps)
        steps.append(step)
        if step.passed and step.same_as is None:
            best, model = len(steps) - 1, tried
        if record is not None:
            record.save(settings, steps, best, tried)
        say(f"step {len(steps) - 1}: {describe(step, trial.search.kind)}")
    if not best:
        if all(step.outcome == "unreachable" for step in steps[1:]) and steps[0].passed:
            raise ValueError(f"nothing can be made smaller: {steps[-1].reason}")
        last = next((step for step in reversed(steps) if step.verdict is not None), steps[0])
        raise NothingPassed(_why_nothing(steps, trial.search.kind), steps, Verdict.from_dict(last.verdict or {}))
    chosen = steps[best]
    plan = Plan.from_dict(chosen.plan)
    if model is None:  # its step was finished before an interruption
        assert record is not None
        model = record.model(best, plan, trial.network)
    followed = Recovered(model, chosen.repairs, chosen.epochs)
    return Smallest(followed, plan, Verdict.from_dict(chosen.verdict or {}), tuple(steps), best)


def _removed(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The edits without their reasons, which may differ between budgets."""
    return [{key: value for key, value in edit.items() if key != "reason"} for edit in plan["edits"]]


def describe(step: Attempt, kind: str) -> str:
    """A step in one line: the budget, the share that its plan keeps, the outcome, and the gates that decided it."""
    kept = "" if step.outcome == "unreachable" else f", keeps {step.kept:.1%}"
    return f"{kind} {step.budget:.3f}{kept}: {step.outcome}{decided(step)}"


def decided(step: Attempt) -> str:
    """The gates that decided a step, in words."""
    if step.outcome == "unreachable":
        return f" ({step.reason})"
    gates = ", ".join(f"{gate['measure']} {_number(gate['value'])}, limit {gate['limit']:g}" for gate in step.deciding)
    return f" by {gates}" if gates else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _why_nothing(steps: Sequence[Attempt], kind: str) -> str:
    if len(steps) == 1:
        (detail, *_) = [gate["detail"] for gate in steps[0].deciding] or [""]
        return (
            f"not even the original passes these gates on these test inputs: {steps[0].outcome}{decided(steps[0])} "
            f"({detail}); give more test inputs or milder gates"
        )
    mildest = max((step for step in steps[1:]), key=lambda step: step.budget)
    return f"no smaller model passes; the mildest budget tried, {describe(mildest, kind)}"
