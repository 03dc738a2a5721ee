"""Which budget is tried next: bracketing, then bisection. It depends only on the budgets tried and their outcomes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from simprune import settings
from simprune.checks import Gate, Outcome


@dataclass(frozen=True)
class SearchSettings(settings.Search):
    """How the smallest model that passes is searched.

    `kind`: the cost that is made smaller; latency is measured for every plan, which takes longer. `tolerance`: the
    search ends when the smallest share known to pass and the largest known to fail are this near. `inconclusive`:
    whether gates that cannot be decided count as failed or passed.

    All checks of a search are made on the same test set, so the chance that one of them passes a model wrongly grows
    with their number, at most k = `most_checks`. With `correction` "none", every check has the gates' own confidence
    1 - a, as `validate` would repeat it, and the confidence of the choice as a whole is at least 1 - k a. With
    "bonferroni", every check has confidence 1 - a / k, and the choice as a whole at least 1 - a, however the checks
    depend on each other.

    Raises:
        ValueError: for a value out of range.
    """

    @property
    def checks(self) -> int:
        """The most models that the search can check."""
        return most_checks(self.tolerance)

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
    """One budget that was tried; the first is the original itself.

    `budget`: the share of the original's cost that was asked for. `kept`: the share that the plan keeps. `same_as`: the
    index of an earlier step with the same plan, whose outcome is repeated. `rows`: the stages of the model. `repairs`
    and `epochs`: as in the report.
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

    @property
    def deciding(self) -> list[dict[str, Any]]:
        """The gates that failed; if none failed, those that could not be decided."""
        gates = (self.verdict or {}).get("gates", [])
        return [gate for gate in gates if gate["outcome"] == self.outcome] if self.outcome != "pass" else []

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


def next_budget(steps: Sequence[Attempt], tolerance: float) -> float | None:
    """The share of the cost to try after these steps; None when the search is over.

    The original is tried first, because nothing passes where it does not. Then the share is halved as long as models
    pass. Then the middle is tried between the smallest share that passed and the largest that failed.

    >>> next_budget([Attempt(1, 1, "pass", True), Attempt(0.5, 0.49, "fail", False)], 0.02)
    0.75
    """
    if not steps:
        return 1.0
    if not steps[0].passed:
        return None
    high = min(step.kept for step in steps if step.passed)
    low = max((step.budget for step in steps if not step.passed), default=0.0)
    if high - low <= tolerance:
        return None
    return (low + high) / 2


def most_checks(tolerance: float) -> int:
    """The most models that a search can check, without the check of the original against itself.

    >>> most_checks(0.02)
    6
    """
    return math.ceil(math.log2(1 / tolerance))
