"""The search itself: plan, follow and check one budget after another; back to the last model that passed."""

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
    """The smallest model that passed, as `Recovery.follow` left it, and how it was found."""

    followed: Recovered
    plan: Plan
    verdict: Verdict
    steps: tuple[Attempt, ...]
    best: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.steps[self.best].rows]


class NothingPassed(Exception):
    """No model passed, not the mildest and perhaps not the original; `steps` and the last `verdict` say why."""

    def __init__(self, message: str, steps: Sequence[Attempt], verdict: Verdict) -> None:
        super().__init__(message)
        self.steps, self.verdict = tuple(steps), verdict
        self.report: dict[str, Any] = {}


@dataclass(frozen=True)
class Procedure:
    """Everything that is the same for all budgets.

    `choose` makes the plan for a share of the cost, ValueError when it cannot be reached; `judge` checks a model.
    """

    network: Network
    choose: Callable[[float], Plan]
    recovery: Recovery
    judge: Callable[[nn.Module], Verdict]
    stages: StageTable
    search: SearchSettings

    def of(self, budget: float, steps: Sequence[Attempt]) -> tuple[Attempt, nn.Module]:
        """One step; the models of the steps before are not needed."""
        if not steps:
            self.choose(1.0)  # what is wrong with anything but the budget is said here
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
        for place, other in enumerate(steps):
            if other.plan is not None and _removed(other.plan) == _removed(content):
                same = replace(other, budget=budget, kept=kept, reason=f"as step {place}", same_as=place, plan=None)
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

    Passing is taken to be monotone: what is smaller than a model that failed is not tried. With a `record` every
    finished step is kept there, and the steps that are there already are not made again; `settings` say whose they are.
    Raises NothingPassed when nothing smaller than the original passes.
    """
    original = {"weights": digest(trial.network.model), "accuracy": trial.stages.rows[0]["accuracy"]}
    settings = {**settings, "original": original}
    steps = [] if record is None else record.load(settings)
    best = max((place for place, step in enumerate(steps) if step.passed), default=None)
    model: nn.Module | None = None
    while (budget := next_budget(steps, trial.search.tolerance)) is not None:
        step, made = trial.of(budget, steps)
        steps.append(step)
        if step.passed and step.same_as is None:
            best, model = len(steps) - 1, made
        if record is not None:
            record.save(settings, steps, best, made)
        say(f"step {len(steps) - 1}: {describe(step, trial.search.kind)}")
    if not best:
        if all(step.outcome == "unreachable" for step in steps[1:]) and steps[0].passed:
            raise ValueError(f"nothing can be made smaller: {steps[-1].reason}")
        last = next((step for step in reversed(steps) if step.verdict is not None), steps[0])
        raise NothingPassed(_why_nothing(steps, trial.search.kind), steps, Verdict.from_dict(last.verdict or {}))
    chosen = steps[best]
    plan = Plan.from_dict(chosen.plan)
    if model is None:  # made before an interruption
        assert record is not None
        model = record.model(best, plan, trial.network)
    followed = Recovered(model, chosen.repairs, chosen.epochs)
    return Smallest(followed, plan, Verdict.from_dict(chosen.verdict or {}), tuple(steps), best)


def _removed(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The edits without their reasons, which tell of the budget."""
    return [{key: value for key, value in edit.items() if key != "reason"} for edit in plan["edits"]]


def describe(step: Attempt, kind: str) -> str:
    """A step in one line: what was asked for, what is kept, and what decided."""
    kept = "" if step.outcome == "unreachable" else f", keeps {step.kept:.1%}"
    return f"{kind} {step.budget:.3f}{kept}: {step.outcome}{decided(step)}"


def decided(step: Attempt) -> str:
    """By which checks, in words."""
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
