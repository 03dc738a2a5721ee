"""The smallest model that passes: which budgets are tried, what is kept of every step, and the search itself."""

from simprune.search.history import history
from simprune.search.record import Record
from simprune.search.run import Found, NothingPassed, Trial, smallest
from simprune.search.steps import Search, Step, most_checks, next_budget

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
