"""The smallest model that passes: which budgets are tried, what is kept of every step, and the search itself."""

from simprune.tune.smallest.history import history
from simprune.tune.smallest.record import Record
from simprune.tune.smallest.run import NothingPassed, Procedure, Smallest, smallest
from simprune.tune.smallest.steps import Attempt, SearchSettings, most_checks, next_budget

__all__ = [
    "Attempt",
    "NothingPassed",
    "Procedure",
    "Record",
    "SearchSettings",
    "Smallest",
    "history",
    "most_checks",
    "next_budget",
    "smallest",
]
