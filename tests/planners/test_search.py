"""The walk that planners share."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from simprune.planners.constraints import Constraints
from simprune.planners.search import Search, _block_queue, greedy_selection
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


@pytest.mark.parametrize("interacting", [False, True])
def test_blocks_that_lie_apart_are_queued_as_by_trying_them_all(interacting):
    space = Space.of(chain(9, 4, coupled=False, blocks=True, interacting=interacting, seed=3), Constraints())
    search = Search(space, {"macs": 0.0})
    queue = _block_queue(search)
    nothing = np.zeros((1, len(space.menus)), np.intp)
    whole = search.scalar(space.cost(space.nothing)[None])[0]
    for before, after in pairwise(queue):
        rates = []
        for block in np.flatnonzero(~before):
            alone, tried = np.zeros(len(before), bool), before.copy()
            alone[block] = tried[block] = True
            added = space.damage(nothing, tried[None])[0] - space.damage(nothing, before[None])[0]
            rates.append(added / (whole - search.scalar(space.costs(nothing, alone[None]))[0]))
        taken = np.flatnonzero(~before).tolist().index(int(np.flatnonzero(after & ~before)[0]))
        assert rates[taken] <= min(rates) * (1 + 1e-4)
