"""The search: budget after budget is planned, followed and checked; the smallest model that passed is returned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from simprune.checks import Verdict
from simprune.core.plain import finite
from simprune.core.plan import Plan
from simprune.core.progress import say
from simprune.core.weights import digest
from simprune.repair.recovery import Recovered, Recovery
from simprune.repair.stages import StageTable
from simprune.repair.training import forget
from simprune.trace.network import Network
from simprune.tune.smallest.attempts import Attempt, SearchSettings, next_budget
from simprune.tune.smallest.record import Record


@dataclass(frozen=True)
class Smallest:
    """The smallest model that passed, repaired and trained.

    `steps`: the attempts of the search. `best`: the index of the attempt that made the model.
    """

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
    """No smaller model passed, or not even the original; `steps` (the attempts) and the last `verdict` say why."""

    def __init__(self, message: str, attempts: Sequence[Attempt], verdict: Verdict) -> None:
        super().__init__(message)
        self.steps, self.verdict = tuple(attempts), verdict
        self.report: dict[str, Any] = {}


@dataclass(frozen=True)
class Procedure:
    """How one budget is tried; the same for all budgets of a search.

    `choose`: returns the plan for a share of the cost, or raises ValueError where the share cannot be reached.
    `recovery`: repairs and trains. `judge`: checks a model. `stages`: a table with the original as its first row.
    """

    network: Network
    choose: Callable[[float], Plan]
    recovery: Recovery
    judge: Callable[[nn.Module], Verdict]
    stages: StageTable
    search: SearchSettings

    def of(self, budget: float, attempts: Sequence[Attempt], folder: Path | None = None) -> tuple[Attempt, nn.Module]:
        """Try one budget after these attempts, the original if there are none; returns the attempt and its model.

        The training of the attempt is stored in the folder.
        """
        original = self.network.model
        if not attempts:
            self.choose(1.0)  # wrong arguments raise here, so that later errors are about the budget
            rows = [row | {"latency_ms": None} for row in self.stages.rows[:1]]
            return self._checked(original, budget=1.0, kept=1.0, rows=rows), original
        try:
            plan = self.choose(budget)
        except ValueError as error:
            return Attempt(budget, budget, "unreachable", False, str(error)), original
        figure = "latency_ms" if self.search.kind == "latency" else self.search.kind
        kept = plan.expected[figure] / (plan.original[figure] or 1)
        content = plan.to_dict()
        for index, other in enumerate(attempts):
            if other.plan is not None and _removed(other.plan) == _removed(content):
                same = replace(other, budget=budget, kept=kept, reason=f"as step {index}", same_as=index, plan=None)
                return same, original
        stages = self.stages.beside()
        followed = self.recovery.follow(plan, self.network, stages.add, folder)
        lists = {"rows": stages.rows, "repairs": finite(followed.repairs), "epochs": finite(followed.epochs)}
        lists["notes"] = [*followed.notes]
        return self._checked(followed.model, budget=budget, kept=kept, plan=content, **lists), followed.model

    def _checked(self, model: nn.Module, **facts: Any) -> Attempt:
        """The attempt with the verdict on its model."""
        verdict = self.judge(model)
        passed = self.search.passes(verdict.outcome)
        return Attempt(outcome=verdict.outcome, passed=passed, verdict=verdict.to_dict(), **facts)


def smallest(trial: Procedure, settings: Mapping[str, Any], record: Record | None = None) -> Smallest:
    """The smallest model that passes, by bracketing and bisection over the share of the cost.

    Passing is taken to be monotone: nothing smaller than a model that failed is tried.

    Args:
        trial: how one budget is tried.
        settings: of the run, by which a stored search is recognised as the same.
        record: the folder to which every finished attempt is written; attempts that it already holds are not repeated.

    Returns:
        The smallest model that passed, with all attempts.

    Raises:
        NothingPassed: when no model smaller than the original passes.
        ValueError: when nothing can be removed, and when the folder holds another search or was changed.
    """
    original = {"weights": digest(trial.network.model), "accuracy": trial.stages.rows[0]["accuracy"]}
    settings = {**settings, "original": original}
    attempts = [] if record is None else record.load(settings)
    best = max((index for index, attempt in enumerate(attempts) if attempt.passed), default=None)
    model: nn.Module | None = None
    while (budget := next_budget(attempts, trial.search.tolerance)) is not None:
        training = None if record is None else record.training(len(attempts))
        if trial.search.kind == "latency":  # measured again, it may give another plan than before an interruption
            forget(training)
        attempt, tried = trial.of(budget, attempts, training)
        attempts.append(attempt)
        if attempt.passed and attempt.same_as is None:
            best, model = len(attempts) - 1, tried
        if record is not None:
            record.save(settings, attempts, best, tried)
            forget(training)
        say(f"step {len(attempts) - 1}: {_described(attempt, trial.search.kind)}")
    if not best:
        if all(attempt.outcome == "unreachable" for attempt in attempts[1:]) and attempts[0].passed:
            raise ValueError(f"nothing can be made smaller: {attempts[-1].reason}")
        verdicts = [attempt.verdict for attempt in attempts if attempt.verdict is not None]
        raise NothingPassed(_why_nothing(attempts, trial.search.kind), attempts, Verdict.from_dict(verdicts[-1]))
    chosen = attempts[best]
    plan = Plan.from_dict(chosen.plan)
    if model is None:  # its attempt was finished before an interruption
        assert record is not None
        model = record.model(best, plan, trial.network)
        again = trial.judge(model)  # what is on a disk is not taken at its word
        if not trial.search.passes(again.outcome):
            raise ValueError(
                f"{record.folder}: the stored model of step {best} does not pass its checks again ({again.outcome}); "
                "the data or the weights are other ones: start in a new folder"
            )
    followed = Recovered(model, chosen.repairs, chosen.epochs, tuple(chosen.notes))
    return Smallest(followed, plan, Verdict.from_dict(chosen.verdict or {}), tuple(attempts), best)


def _removed(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The edits without their reasons, which may differ between budgets."""
    return [{key: value for key, value in edit.items() if key != "reason"} for edit in plan["edits"]]


def _described(attempt: Attempt, kind: str) -> str:
    """An attempt in one line: its budget, the share of the cost that remains, and its outcome."""
    remaining = "" if attempt.outcome == "unreachable" else f", keeps {attempt.kept:.1%}"
    return f"{kind} {attempt.budget:.3f}{remaining}: {_decided(attempt)}"


def _decided(attempt: Attempt) -> str:
    """The outcome of an attempt and the gates that decided it, in words."""
    if attempt.outcome == "unreachable":
        return f"unreachable ({attempt.reason})"
    gates = []
    for gate in attempt.deciding:
        value = gate["value"]
        number = f"{value:.4g}" if isinstance(value, int | float) else value
        gates.append(f"{gate['measure']} {number}, limit {gate['limit']:g}")
    return attempt.outcome + (f" by {', '.join(gates)}" if gates else "")


def _why_nothing(attempts: Sequence[Attempt], kind: str) -> str:
    first, *others = attempts
    if not others:
        detail = first.deciding[0]["detail"] if first.deciding else ""
        return (
            f"not even the original passes these gates on these test inputs: {_decided(first)} ({detail}); "
            "give more test inputs or milder gates"
        )
    mildest = max(others, key=lambda attempt: attempt.budget)
    return f"no smaller model passes; the mildest budget tried, {_described(mildest, kind)}"
