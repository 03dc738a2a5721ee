"""Which budget is tried next: bracketing, then bisection. What was tried is all there is to know."""

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

    The model is chosen by checks on one and the same test set. With `correction` "none" each check is at the gates' own
    confidence 1 - a, as `validate` would repeat it; of all k = `most_checks` that the search can make none passes a
    model wrongly at 1 - k a or more. With "bonferroni" every check is at 1 - a / k, so that the choice as a whole is at
    1 - a (Bonferroni: whatever depends on what). ValueError for a value out of range.
    """

    @property
    def checks(self) -> int:
        return most_checks(self.tolerance)

    def passes(self, outcome: str) -> bool:
        return outcome == "pass" or (outcome == "inconclusive" and self.inconclusive == "pass")

    def gates(self, gates: Sequence[Gate]) -> list[Gate]:
        """The gates as one check of the search applies them."""
        if self.correction == "none":
            return list(gates)
        return [replace(gate, confidence=1 - (1 - gate.confidence) / self.checks) for gate in gates]


@dataclass(frozen=True)
class Attempt:
    """One budget that was tried, the original itself being the first.

    `budget` and `kept`: shares of the original's cost, asked for and kept by the plan. `same_as`: the earlier step with
    the same plan, whose outcome holds. `rows`: the stages of the model; `repairs`, `epochs`: as in the report.
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
        """The gates that failed; if none did, those that could not be decided."""
        gates = (self.verdict or {}).get("gates", [])
        return [gate for gate in gates if gate["outcome"] == self.outcome] if self.outcome != "pass" else []

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**data)


def next_budget(steps: Sequence[Attempt], tolerance: float) -> float | None:
    """The share to try after these steps; None when the search is over.

    The original first: where it does not pass, nothing will. Then half of what passed, as long as that passes; then the
    middle between the smallest share that passed and the largest that failed.

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
    """How many models a search can check at most, the original against itself not counted.

    >>> most_checks(0.02)
    6
    """
    return math.ceil(math.log2(1 / tolerance))
