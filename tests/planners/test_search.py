"""The walk that planners share."""

from dataclasses import replace

import numpy as np

from simprune.planners.constraints import Constraints
from simprune.planners.search import Search, greedy_selection
from simprune.planners.space import Additive, Space
from tests.planners.synthetic import chain


def test_levels_that_pay_only_together_are_weighed_together():
    """One group saves nothing before its fourth channel goes, the other a little with each; both damage alike."""
    redundancy = chain(2, 5)
    channels = [
        replace(entry, damage=(damage,) * 5) for entry, damage in zip(redundancy.channels, (1.0, 1.2), strict=True)
    ]
    space = Space.of(replace(redundancy, channels=tuple(channels)), Constraints())
    table = Additive(10.0, (np.array([0.0, 0.0, 0.0, 0.0, 4.0]), np.arange(5.0)), np.zeros(0))
    search = Search(replace(space, extra={"latency": table}), {"latency": 6.0})
    assert greedy_selection(search).levels.tolist() == [4, 0]
    fewer = replace(search, ceilings={"latency": 4.0})
    assert greedy_selection(fewer).levels.tolist() == [4, 2]
