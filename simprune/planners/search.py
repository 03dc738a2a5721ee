"""The search that planners share: ceilings for the cost, and the walk along a sequence of steps until they hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from simprune.planners.constraints import Constraints
from simprune.planners.space import Floats, Selection, Space, Step


@dataclass(frozen=True)
class Search:
    """A space, the largest cost allowed of each limited kind, and what random planners draw from.

    `blocks`: how many have to go, exactly; None if that is free.
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
        """Which rows of `Space.costs` meet every ceiling."""
        columns = [self.space.kinds.index(kind) for kind in self.ceilings]
        return np.all(costs[:, columns] <= np.array([*self.ceilings.values()]), axis=1)

    def scalar(self, costs: Floats, kinds: Sequence[str] | None = None) -> Floats:
        """One cost per row: the mean over the limited kinds of the share of the whole that is kept."""
        columns = [self.space.kinds.index(kind) for kind in kinds or self.ceilings]
        whole = self.space.cost(self.space.nothing)[columns]
        return (costs[:, columns] / np.maximum(whole, 1e-300)).mean(1)


def everything(space: Space) -> Selection:
    """Remove all that may go."""
    return Selection(
        np.array([len(menu.counts) - 1 for menu in space.menus], np.intp), np.ones(len(space.blocks), bool)
    )


def along(search: Search, steps: Sequence[Step]) -> Selection:
    """After which of these steps, one after another, is the damage least among those that meet the budget?

    That is mostly the first that meets it; a later one where a block goes whose channels had gone before. The last when
    none meets it.
    """
    return best(search, *search.space.along(steps))


def best(search: Search, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Selection:
    """Of the selections in these rows, the first of least damage that meets the budget; if none, of least cost.

    Rows with another number of blocks than the search asks for are left out, as long as others are there.
    """
    if search.blocks is not None:
        counted = np.flatnonzero(search.space.gone(blocks).sum(1) == search.blocks)
        if len(counted):
            levels, blocks = levels[counted], blocks[counted]
    costs = search.space.costs(levels, blocks)
    met = search.met(costs)
    if met.any():
        row = int(np.where(met, search.space.damage(levels, blocks), np.inf).argmin())
    else:
        row = int(search.scalar(costs).argmin())
    return Selection(levels[row], blocks[row])


def greedy_selection(search: Search) -> Selection:
    """Least damage per cost saved: of the queue's first j blocks and shortest beginning of channels, the best j.

    For a given j a larger budget keeps more channels of the same queue, and so does not damage more; neither then does
    the best j.
    """
    space = search.space
    levels, _ = space.along(_channel_steps(search))
    candidates_levels, candidates_blocks = [], []
    chosen = np.zeros(len(space.blocks), bool)
    for place in [None, *_block_order(search)]:
        if place is not None:
            chosen[place] = True
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            if search.met(space.costs(levels[middle][None], chosen[None]))[0]:
                high = middle
            else:
                low = middle + 1
        candidates_levels.append(levels[low])
        candidates_blocks.append(chosen.copy())
    return best(search, np.array(candidates_levels), np.array(candidates_blocks))


def uniform_selection(search: Search) -> Selection:
    """The same share of every channel group, the most redundant channels of each first; no blocks."""
    queue = [
        (count / menu.entry.group.size, Step(item, level))
        for item, menu in enumerate(search.space.menus)
        for level, count in enumerate(menu.counts)
        if level
    ]
    return along(search, ranked(queue))


def ranked(queue: Sequence[tuple[float, Step]]) -> list[Step]:
    """Steps by their rank, lowest first; those of equal rank as they stand."""
    return [step for _, step in sorted(queue, key=lambda entry: entry[0])]


def _block_order(search: Search) -> list[int]:
    """Least damage added per cost saved first, as what went before interacts with the rest."""
    count, space = len(search.space.blocks), search.space
    costs = space.costs(np.zeros((count, len(space.menus)), np.intp), np.eye(count, dtype=bool))
    saved = (search.scalar(space.cost(space.nothing)[None]) - search.scalar(costs)).clip(1e-12)
    order: list[int] = []
    gone, lost = np.zeros(count, bool), 0.0
    while len(order) < count:
        left = np.flatnonzero(~gone)
        tried = np.repeat(gone[None], len(left), 0)
        tried[np.arange(len(left)), left] = True
        damage = space.damage(np.zeros((len(left), len(space.menus)), np.intp), tried)
        best = int(((damage - lost) / saved[left]).argmin())
        order.append(int(left[best]))
        gone, lost = tried[best], float(damage[best])
    return order


def _channel_steps(search: Search) -> list[Step]:
    """Levels of all groups by damage per cost saved; levels that pay only with later ones have the ratio of all these.

    That is the lower convex hull of damage over savings, by isotonic regression, so later levels never come first.
    """
    queue = []
    for item, (menu, saved) in enumerate(zip(search.space.menus, savings(search, search.space.nothing), strict=True)):
        more = np.maximum(np.diff(saved), 1e-12)
        hull = isotonic_regression(np.diff(menu.damage) / more, weights=more).x
        queue += [(ratio, Step(item, level)) for level, ratio in enumerate(hull, 1)]
    return ranked(queue)


def savings(search: Search, state: Selection, kinds: Sequence[str] | None = None) -> list[Floats]:
    """For every group, how much cost each of its levels saves, all else being as in `state` and its blocks there."""
    space = search.space
    sizes = [len(menu.counts) for menu in space.menus]
    levels = np.repeat(state.levels[None], sum(sizes), 0)
    ends = np.cumsum([0, *sizes])
    for item, (start, stop) in enumerate(pairwise(ends)):
        levels[start:stop, item] = np.arange(stop - start)
    blocks = np.repeat(state.blocks[None], len(levels), 0)
    for item, (start, stop) in enumerate(pairwise(ends)):
        blocks[start:stop, space.around(item)] = False
    kept = search.scalar(space.costs(levels, blocks), kinds)
    return [kept[start] - kept[start:stop] for start, stop in pairwise(ends)]
