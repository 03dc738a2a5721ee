"""The smallest model that passes: which budgets are tried, what is kept of every step, and the search itself."""

from simprune.tune.smallest.history import history
from simprune.tune.smallest.record import Record
from simprune.tune.smallest.run import Found, NothingPassed, Trial, smallest
from simprune.tune.smallest.steps import Search, Step, most_checks, next_budget

__all__ = [
    "Found",
    "NothingPassed",
    "Record",
    "Search",
    "Step",
    "Trial",
    "history",
    "most_checks",
    "next_budget",
    "smallest",
]
