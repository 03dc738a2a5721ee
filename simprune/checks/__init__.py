"""Gates: does the pruned model still behave like the original, given how many samples there are to tell?"""

from simprune.checks.intervals import bootstrap_mean, bootstrap_statistic, clopper_pearson, paired_difference
from simprune.checks.judging import judge
from simprune.checks.validation import CORRECTIONS, check, rehearse, validate
from simprune.checks.verdict import DEFAULT_GATES, Gate, GateResult, Outcome, Verdict

__all__ = [
    "CORRECTIONS",
    "DEFAULT_GATES",
    "Gate",
    "GateResult",
    "Outcome",
    "Verdict",
    "bootstrap_mean",
    "bootstrap_statistic",
    "check",
    "clopper_pearson",
    "judge",
    "paired_difference",
    "rehearse",
    "validate",
]
