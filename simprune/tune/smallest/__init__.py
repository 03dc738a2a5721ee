"""The smallest model that passes: bisection over the budget, with a folder from which it can be resumed.

Read `attempts` (which budget comes next) first, then `run` (the search) and `record` (its folder).
"""

from simprune.tune.smallest.attempts import Attempt, SearchSettings, history
from simprune.tune.smallest.record import Record
from simprune.tune.smallest.run import NothingPassed, Procedure, smallest

__all__ = ["Attempt", "NothingPassed", "Procedure", "Record", "SearchSettings", "history", "smallest"]
