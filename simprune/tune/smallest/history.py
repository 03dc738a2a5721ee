"""A search as data for the report, with what its repeated checks mean for the confidence of the verdict."""

from collections.abc import Sequence
from typing import Any

from simprune.checks import Gate
from simprune.tune.smallest.steps import Attempt, SearchSettings


def history(search: SearchSettings, steps: Sequence[Attempt], gates: Sequence[Gate]) -> dict[str, Any]:
    """A search as plain data.

    Args:
        search: its settings.
        steps: every budget that was tried.
        gates: of the recipe, at their own confidence.

    Returns:
        The settings; in `steps` every budget with its outcome and the gates that decided it; `chosen`, the index of the
        step whose model was returned; `failed`, the index of the largest budget that did not pass; and a `note` on the
        confidence of the choice.
    """
    passed = [index for index, step in enumerate(steps) if step.passed]
    chosen = passed[-1] if passed and passed[-1] > 0 else None
    failing = [index for index, step in enumerate(steps) if not step.passed]
    return {
        "kind": search.kind,
        "tolerance": search.tolerance,
        "inconclusive": search.inconclusive,
        "correction": search.correction,
        "most_checks": search.checks,
        "steps": [_row(step) for step in steps],
        "chosen": chosen,
        "failed": max(failing, key=lambda index: steps[index].budget, default=None),
        "note": _note(search, gates),
    }


def _row(step: Attempt) -> dict[str, Any]:
    last = step.rows[-1] if step.rows else {}
    keys = ("measure", "inputs", "value", "lower", "upper", "limit", "outcome")
    return {
        "budget": step.budget,
        "kept": None if step.outcome == "unreachable" else step.kept,
        "outcome": step.outcome,
        "passed": step.passed,
        "accuracy": last.get("accuracy"),
        "agreement": last.get("agreement"),
        "same_as": step.same_as,
        "reason": step.reason,
        "decided_by": [{key: gate[key] for key in keys} for gate in step.deciding],
    }


def _note(search: SearchSettings, gates: Sequence[Gate]) -> str:
    """What choosing by checks on one test set means for the confidence of the chosen model's verdict."""
    level = min(gate.confidence for gate in gates)
    most = search.checks
    if search.correction == "bonferroni":
        return (
            f"the model was chosen by at most {most} checks on the same test inputs, each at "
            f"{100 * (1 - (1 - level) / most):.4g} % confidence, so that the choice as a whole is at {100 * level:g} % "
            "(Bonferroni)"
        )
    return (
        f"the model was chosen by at most {most} checks on the same test inputs, each at {100 * level:g} % confidence; "
        f"the choice as a whole is at {100 * max(0.0, 1 - most * (1 - level)):.4g} % or more (Bonferroni). For "
        f"{100 * level:g} % set search.correction=bonferroni, or validate on inputs that the search has not seen"
    )
