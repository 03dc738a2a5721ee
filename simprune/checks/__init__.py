"""Gates: does the pruned model still behave like the original, given how many samples there are to tell?"""

from simprune.checks.intervals import clopper_pearson, margin, rate_interval
from simprune.checks.sets import gates_of
from simprune.checks.validation import check, default_gates, rehearse, validate
from simprune.checks.verdict import Gate, GateResult, Outcome, Verdict

__all__ = [
    "Gate",
    "GateResult",
    "Outcome",
    "Verdict",
    "check",
    "clopper_pearson",
    "default_gates",
    "gates_of",
    "margin",
    "rate_interval",
    "rehearse",
    "validate",
]
