"""The smallest model that passes: bisection over the budget, with a folder from which it can be resumed.

Read `steps` (which budget comes next) first, then `run` (the search) and `record` (its folder); `history` is what the
report shows of a search.
"""

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
