"""What planners share: the search they are handed, and the walk along a sequence of steps until the budget is met."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import scipy
from numpy.typing import NDArray

from simprune.core.ties import OUTPUT, first_least, levelled
from simprune.planners.constraints import Constraints
from simprune.planners.space import Floats, Selection, Space, Step

TINY = 1e-12  # share of the cost: a saving is taken to be at least this, so that damage per saving stays finite
RATE = 100 * OUTPUT  # damage per share of the cost that counts as none: a step saves about a hundredth of the cost


@dataclass(frozen=True)
class Search:
    """What a planner is asked for.

    `space`: what may be selected. `ceilings`: the largest allowed cost by kind, in the unit of the kind; kinds that are
    not limited are not in it. `constraints`: needed to reorder the space. `seed`: for planners that draw at random.
    `blocks`: the exact number of blocks to remove; None leaves it to the planner.
    """

    space: Space
    ceilings: dict[str, float]
    constraints: Constraints = field(default_factory=Constraints)
    seed: int = 0
    blocks: int | None = None

    def within(self, space: Space) -> "Search":
        """The same search in another space."""
        return replace(self, space=space)

    def met(self, costs: Floats) -> NDArray[np.bool_]:
        """(N,) whether costs (N, kinds), as `Space.costs` returns them, meet every ceiling."""
        columns = [self.space.kinds.index(kind) for kind in self.ceilings]
        return np.all(costs[:, columns] <= np.array([*self.ceilings.values()]), axis=1)

    def scalar(self, costs: Floats, kinds: Sequence[str] | None = None) -> Floats:
        """One number for several kinds of cost: their share of the original's cost, averaged over `kinds`.

        Args:
            costs: (N, kinds), as `Space.costs` returns them.
            kinds: over which the mean is taken; None: the limited kinds.

        Returns:
            (N,) shares; 1 is the original.
        """
        columns = [self.space.kinds.index(kind) for kind in kinds or self.ceilings]
        whole = self.space.cost(self.space.nothing)[columns]
        return (costs[:, columns] / np.maximum(whole, 1e-300)).mean(1)


def everything(space: Space) -> Selection:
    """The selection of all that the constraints allow to remove."""
    return Selection(
        np.array([len(menu.counts) - 1 for menu in space.menus], np.intp), np.ones(len(space.blocks), bool)
    )


def best_along(search: Search, steps: Sequence[Step]) -> Selection:
    """Take the steps one after another, and return the selection that damages least among those that meet the budget.

    That is usually the first selection that meets the budget. A later one can damage less where a step removes a block
    whose channels earlier steps have removed. When no selection meets the budget, the cheapest one is returned.
    """
    return best(search, *search.space.along(steps))


def best(search: Search, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Selection:
    """The first selection of least damage among those that meet the budget; when none does, the cheapest.

    Selections whose number of blocks is not the one that the search asks for are left out, unless all are such.

    Args:
        search: the budget.
        levels: (N, groups), the level of every group.
        blocks: (N, blocks), whether a block is removed.
    """
    if search.blocks is not None:
        counted = np.flatnonzero(search.space.outermost(blocks).sum(1) == search.blocks)
        if len(counted):
            levels, blocks = levels[counted], blocks[counted]
    costs = search.space.costs(levels, blocks)
    met = search.met(costs)
    if met.any():
        row = first_least(np.where(met, search.space.damage(levels, blocks), np.inf), OUTPUT)
    else:
        row = int(search.scalar(costs).argmin())
    return Selection(levels[row], blocks[row])


def greedy_selection(search: Search) -> Selection:
    """The least damaging one of `greedy_selections`."""
    return best(search, *greedy_selections(search))


def greedy_selections(search: Search) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Least damage per cost saved: for j = 0, 1, ... the first j blocks of a queue, then channels.

    For a given j, channels are removed from the front of their own queue until the budget is met. A larger budget needs
    fewer channels of the same queue.

    Returns:
        levels (N, groups) and blocks (N, blocks), one row for every j.
    """
    space = search.space
    levels, _ = space.along(_channel_steps(search))
    blocks = _block_queue(search)

    def fewest(removed: NDArray[np.bool_]) -> int:
        """The first row of `levels` that meets the budget with these blocks; the last one where none does."""

        def met(row: int) -> bool:
            return bool(search.met(space.costs(levels[row][None], removed[None]))[0])

        return bisect_left(range(len(levels) - 1), True, key=met)

    return levels[[fewest(removed) for removed in blocks]], blocks


def ranked(queue: Sequence[tuple[float, Step]]) -> list[Step]:
    """The steps of (rank, step) pairs, lowest rank first; steps of equal rank (`core.ties`) keep their order."""
    ranks = levelled([rank for rank, _ in queue], RATE)
    return [queue[index][1] for index in ranks.argsort(kind="stable")]


def _block_queue(search: Search) -> NDArray[np.bool_]:
    """(blocks + 1, blocks) the removal of the first 0, 1, ... blocks, least damage added per cost saved first.

    The added damage is that of a block after all blocks before it in the order, with which it interacts.
    """
    count, space = len(search.space.blocks), search.space
    costs = space.costs(np.zeros((count, len(space.menus)), np.intp), np.eye(count, dtype=bool))
    saved = (search.scalar(space.cost(space.nothing)[None]) - search.scalar(costs)).clip(TINY)
    queue, lost = [np.zeros(count, bool)], 0.0
    if not space.inside[:, len(space.menus) :].any():
        return _apart(space, saved)
    while len(queue) <= count:
        remaining = np.flatnonzero(~queue[-1])
        candidates = np.repeat(queue[-1][None], len(remaining), 0)
        candidates[np.arange(len(remaining)), remaining] = True
        damage = space.damage(np.zeros((len(remaining), len(space.menus)), np.intp), candidates)
        row = first_least((damage - lost) / saved[remaining], RATE)
        queue.append(candidates[row])
        lost = float(damage[row])
    return np.array(queue)


def _apart(space: Space, saved: Floats) -> NDArray[np.bool_]:
    """The same of blocks of which none lies inside another: what a block adds follows from the sum before it."""
    count = len(space.blocks)
    lengths = np.sqrt([entry.damage for entry in space.blocks])
    crossed, remaining = np.zeros(count), np.arange(count)  # products of interactions with the lengths that are removed
    queue = np.zeros((count + 1, count), bool)
    for turn in range(1, count + 1):
        added = lengths[remaining] * (lengths[remaining] + 2 * crossed[remaining])
        row = first_least(added / saved[remaining], RATE)
        block, remaining = int(remaining[row]), np.delete(remaining, row)
        queue[turn] = queue[turn - 1]
        queue[turn, block] = True
        both = space.interactions[:count, block] + space.interactions[block, :count]
        crossed = crossed + both / 2 * lengths[block]
    return queue


def _channel_steps(search: Search) -> list[Step]:
    """The levels of all groups, least damage per cost saved first, and the levels of a group in rising order.

    A level that saves little by itself may be worth removing together with later levels of its group. The ratio of a
    level is therefore that of the lower convex hull of damage over savings, which isotonic regression finds.
    """
    queue = []
    for item, (menu, saved) in enumerate(zip(search.space.menus, savings(search, search.space.nothing), strict=True)):
        more = np.maximum(np.diff(saved), TINY)
        hull = scipy.optimize.isotonic_regression(np.diff(menu.damage) / more, weights=more).x
        queue += [(ratio, Step(item, level)) for level, ratio in enumerate(hull, 1)]
    return ranked(queue)


def savings(search: Search, state: Selection, kinds: Sequence[str] | None = None) -> list[Floats]:
    """How much cost every level of every group saves.

    Args:
        search: the space; its limited kinds of cost are the default for `kinds`.
        state: what is removed elsewhere. Blocks around the group in question are taken to be there.
        kinds: of cost, as of `Search.scalar`.

    Returns:
        For every group (levels,) savings, as shares of the original's cost; the first is 0.
    """
    space = search.space
    sizes = [len(menu.counts) for menu in space.menus]
    levels = np.repeat(state.levels[None], sum(sizes), 0)
    blocks = np.repeat(state.blocks[None], len(levels), 0)
    ends = np.cumsum([0, *sizes])
    for item, (start, stop) in enumerate(pairwise(ends)):
        levels[start:stop, item] = np.arange(stop - start)
        blocks[start:stop, space.inside[:, item]] = False
    costs = search.scalar(space.costs(levels, blocks), kinds)
    return [costs[start] - costs[start:stop] for start, stop in pairwise(ends)]
