"""Gates: does the pruned model still behave like the original, given how many samples there are to tell?"""

from typing import Any

from simprune.checks.intervals import bootstrap_mean, bootstrap_statistic, clopper_pearson, paired_difference
from simprune.checks.judging import judge
from simprune.checks.sets import Gates, gates_of
from simprune.checks.validation import CORRECTIONS, check, rehearse, validate
from simprune.checks.verdict import Gate, GateResult, Outcome, Verdict

__all__ = [
    "CORRECTIONS",
    "DEFAULT_GATES",  # pyright: ignore[reportUnsupportedDunderAll]
    "Gate",
    "GateResult",
    "Gates",
    "Outcome",
    "Verdict",
    "bootstrap_mean",
    "bootstrap_statistic",
    "check",
    "clopper_pearson",
    "gates_of",
    "judge",
    "paired_difference",
    "rehearse",
    "validate",
]


def __getattr__(name: str) -> Any:
    """`DEFAULT_GATES`, built when asked for: while this package is imported the registry is not complete."""
    if name == "DEFAULT_GATES":
        return tuple(gates_of())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
