"""The smallest model that passes: which budgets are tried, what is kept of every step, and the search itself."""

from simprune.tune.smallest.history import history
from simprune.tune.smallest.record import Record
from simprune.tune.smallest.run import Smallest, NothingPassed, Procedure, smallest
from simprune.tune.smallest.steps import SearchSettings, Attempt, most_checks, next_budget

__all__ = [
    "Smallest",
    "NothingPassed",
    "Record",
    "SearchSettings",
    "Attempt",
    "Procedure",
    "history",
    "most_checks",
    "next_budget",
    "smallest",
]
