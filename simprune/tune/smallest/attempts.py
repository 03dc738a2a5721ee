"""Attempts of a search: which budget comes next, by bracketing, then bisection; and the search as the report shows it.

The next budget depends only on the budgets tried and their outcomes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from simprune import settings
from simprune.checks import Gate, Outcome


@dataclass(frozen=True)
class SearchSettings(settings.Search):
    """How the smallest model that passes is searched.

    `kind`: the cost that is made smaller; latency is measured for every plan, which takes longer. `tolerance`: the
    search ends when the smallest share known to pass and the largest known to fail differ by no more. `inconclusive`:
    whether gates that cannot be decided count as failed or passed.

    All checks of a search use the same test set, so the chance that one of them passes a model wrongly grows with their
    number, at most k = `checks`. With `correction` "none", every check has the gates' own confidence 1 - a, as
    `validate` would repeat it, and the confidence of the choice as a whole is at least 1 - k a. With "bonferroni",
    every check has confidence 1 - a / k, and the choice as a whole at least 1 - a, however the checks depend on each
    other.

    Raises:
        ValueError: for a value out of range.
    """

    @property
    def checks(self) -> int:
        """The most models that the search can check, without the check of the original against itself.

        >>> SearchSettings(tolerance=0.02).checks
        6
        """
        return math.ceil(math.log2(1 / self.tolerance))

    def passes(self, outcome: str) -> bool:
        """Whether an outcome of the gates counts as passed."""
        return outcome == "pass" or (outcome == "inconclusive" and self.inconclusive == "pass")

    def gates(self, gates: Sequence[Gate]) -> list[Gate]:
        """The gates with the confidence that a check of the search has."""
        if self.correction == "none":
            return list(gates)
        return [replace(gate, confidence=1 - (1 - gate.confidence) / self.checks) for gate in gates]


@dataclass(frozen=True)
class Attempt:
    """One budget that was tried; the first attempt is the original itself.

    `budget`: the requested share of the original's cost. `kept`: the share that the plan leaves. `same_as`: the index
    of an earlier attempt with the same plan, whose outcome is repeated. `rows`: the stages of the model. `repairs` and
    `epochs`: as in the report. `notes`: what the repair left alone.
    """

    budget: float
    kept: float
    outcome: Outcome | Literal["unreachable"]
    passed: bool
    reason: str = ""
    same_as: int | None = None
    plan: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    repairs: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def deciding(self) -> list[dict[str, Any]]:
        """The gates that failed; if none failed, those that could not be decided."""
        gates = (self.verdict or {}).get("gates", [])
        return [gate for gate in gates if gate["outcome"] == self.outcome] if self.outcome != "pass" else []


def next_budget(attempts: Sequence[Attempt], tolerance: float) -> float | None:
    """The share of the cost to try after these attempts; None when the search is over.

    The original is tried first, because nothing passes where it does not. Then the share is halved as long as models
    pass. Then the middle is tried between the smallest share that passed and the largest that failed.

    >>> next_budget([Attempt(1, 1, "pass", True), Attempt(0.5, 0.49, "fail", False)], 0.02)
    0.75
    """
    if not attempts:
        return 1.0
    if not attempts[0].passed:
        return None
    high = min(attempt.kept for attempt in attempts if attempt.passed)
    low = max((attempt.budget for attempt in attempts if not attempt.passed), default=0.0)
    return None if high - low <= tolerance else (low + high) / 2


def history(search: SearchSettings, attempts: Sequence[Attempt], gates: Sequence[Gate]) -> dict[str, Any]:
    """A search as plain data.

    Args:
        search: its settings.
        attempts: every budget that was tried.
        gates: of the recipe, at their own confidence.

    Returns:
        The settings; in `steps` every budget with its outcome and the gates that decided it; `chosen`, the index of the
        attempt whose model was returned; `failed`, the index of the largest budget that did not pass; and a `note` on
        the confidence of the choice.
    """
    passed = [index for index, attempt in enumerate(attempts) if attempt.passed]
    failing = [index for index, attempt in enumerate(attempts) if not attempt.passed]
    return {
        **search.to_dict(),
        "most_checks": search.checks,
        "steps": [_row(attempt) for attempt in attempts],
        "chosen": (passed[-1] or None) if passed else None,  # the original, index 0, is not a choice
        "failed": max(failing, key=lambda index: attempts[index].budget, default=None),
        "note": _note(search, gates),
    }


def _row(attempt: Attempt) -> dict[str, Any]:
    last = attempt.rows[-1] if attempt.rows else {}
    keys = ("measure", "inputs", "output", "value", "lower", "upper", "limit", "outcome")
    return {
        "budget": attempt.budget,
        "kept": None if attempt.outcome == "unreachable" else attempt.kept,
        "outcome": attempt.outcome,
        "passed": attempt.passed,
        "accuracy": last.get("accuracy"),
        "agreement": last.get("agreement"),
        "same_as": attempt.same_as,
        "reason": attempt.reason,
        "decided_by": [{key: gate[key] for key in keys if key in gate} for gate in attempt.deciding],
    }


def _note(search: SearchSettings, gates: Sequence[Gate]) -> str:
    """What choosing by checks on one test set means for the confidence of the chosen model's verdict."""
    level, most = min(gate.confidence for gate in gates), search.checks
    start = f"the model was chosen by at most {most} checks on the same test inputs, each at"
    if search.correction == "bonferroni":
        return (
            f"{start} {100 * (1 - (1 - level) / most):.4g} % confidence, so that the choice as a whole is at "
            f"{100 * level:g} % (Bonferroni)"
        )
    return (
        f"{start} {100 * level:g} % confidence; the choice as a whole is at "
        f"{100 * max(0.0, 1 - most * (1 - level)):.4g} % or more (Bonferroni). For {100 * level:g} % set "
        "search.correction=bonferroni, or validate on inputs that the search has not seen"
    )
