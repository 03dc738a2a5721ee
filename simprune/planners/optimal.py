"""The least expected damage for a budget: dynamic programming over what every structure saves.

The selection is optimal, up to the resolution of the table, where damage and savings add up over structures: no
structures interact, no weight lies between two groups, and one kind of cost is limited.

Elsewhere a channel saves less, and damages more, once its neighbours are removed. Savings and damages are then taken at
fixed points on the way from nothing removed to everything removed, and improved in rounds. The best of all selections
that this gives, by exact cost and damage, is returned. The points do not depend on the budget, so that a larger budget
never damages more. The selections of greedy and uniform are among the candidates. Where the number of blocks is fixed,
the blocks are those that greedy removes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simprune.core.registry import register
from simprune.planners.greedy import greedy
from simprune.planners.search import Search, best, everything, greedy_selection, savings
from simprune.planners.space import Floats, Selection, Space
from simprune.planners.surplus import best_without_surplus
from simprune.planners.uniform import uniform

RESOLUTION = 4096  # cells of the table; fewer where all savings are multiples of a larger cell
POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of all that can be saved, at which savings and damages are taken
ROUNDS = 3  # of improvement per point where one kind of cost is limited; where several are, one round per mix of kinds


@register("planner", "optimal")
def optimal(search: Search) -> tuple[Space, Selection]:
    """Least expected damage: dynamic programming over channels and blocks, never worse than greedy or uniform."""
    space = search.space
    candidates = [greedy(search)[1], uniform(search)[1]]
    fixed = None if search.blocks is None else candidates[0].blocks
    kinds = tuple(search.ceilings)
    mixes = dict.fromkeys([kinds, *((kind,) for kind in kinds)])
    for mix in mixes:
        candidates += _candidates(search, mix, ROUNDS if len(mixes) == 1 else 1, fixed)
    levels, blocks = (np.stack([getattr(candidate, part) for candidate in candidates]) for part in ("levels", "blocks"))
    return space, best_without_surplus(search, levels, blocks)


def _candidates(
    search: Search, kinds: tuple[str, ...], rounds: int, fixed: NDArray[np.bool_] | None
) -> list[Selection]:
    """The best selection for the budget from every table whose savings are of these kinds of cost.

    `rounds`: of improvement per point. `fixed`: (blocks,) the blocks to remove, where their number is prescribed.
    """
    space = search.space
    first = _savings(search, space.nothing, kinds)
    last = _savings(search, everything(space), kinds)
    additive = all(np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(first, last, strict=True))
    if additive and not space.interactions.any():
        return [best(search, *pareto_selections(space, first, fixed=fixed))]
    whole, least = space.cost(space.nothing), space.cost(everything(space))
    candidates = []
    for point in POINTS:
        limits = dict(zip(space.kinds, whole - point * (whole - least), strict=True))
        nearby = Search(space, {kind: limits[kind] for kind in kinds})
        state = greedy_selection(nearby)
        for _ in range(rounds):
            rows = pareto_selections(space, _savings(search, state, kinds), state, fixed)
            candidates.append(best(search, *rows))
            before, state = state, best(nearby, *rows)
            if (before.levels == state.levels).all() and (before.blocks == state.blocks).all():
                break
    return candidates


def _savings(search: Search, state: Selection, kinds: Sequence[str]) -> list[Floats]:
    """(levels,) savings of every group, then (0, saving) of every block with all its channels; others as in `state`."""
    space = search.space
    levels = np.repeat(state.levels[None], 2 * len(space.blocks), 0)
    blocks = np.repeat(state.blocks[None], len(levels), 0)
    for block in range(len(space.blocks)):  # a row with the block, and a row without it
        blocks[2 * block : 2 * block + 2, space.inside[:, len(space.menus) + block]] = False
        blocks[2 * block : 2 * block + 2, block] = (False, True)
        levels[2 * block, space.inside[block, : len(space.menus)]] = 0
    costs = search.scalar(space.costs(levels, blocks), kinds)
    return [*savings(search, state, kinds), *(np.array([0, before - after]) for before, after in costs.reshape(-1, 2))]


def pareto_selections(
    space: Space, saved: Sequence[Floats], state: Selection | None = None, fixed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The selection of least damage for every amount saved, by dynamic programming; dominated selections are left out.

    A block is either removed, or it stays and levels are selected for the groups inside it.

    Args:
        space: what may be selected.
        saved: (levels,) savings of every group, then (0, saving) of every block, as shares of the original's cost.
        state: the selection with which damages interact; None: nothing.
        fixed: (blocks,) which blocks are removed; None leaves that open.

    Returns:
        levels (N, groups) and blocks (N, blocks), from the least amount saved to the largest. Time is
        O(levels x cells), memory O(structures x cells).
    """
    children = space.children()
    damage = space.damages(state or space.nothing)
    cells = _cells(saved, children, len(space.menus))
    decided: dict[int, NDArray[np.int16]] = {}

    def fold(table: Floats, items: Sequence[int]) -> Floats:
        """Extend a table, the least damage by cells saved, by all selections of these items."""
        for item in items:
            block = item - len(space.menus)
            staying = fold(table, children[block]) if block >= 0 else table
            result = np.full(max(len(staying), len(table) + int(cells[item].max())), np.inf)
            may_stay, may_go = (True, True) if fixed is None or block < 0 else (not fixed[block], fixed[block])
            if may_stay:
                result[: len(staying)] = staying
            decision = np.zeros(len(result), np.int16)
            for level in range(1, len(damage[item]) if may_go else 1):
                shifted = slice(cells[item][level], cells[item][level] + len(table))
                total = table + damage[item][level]
                better = total < result[shifted]
                np.copyto(result[shifted], total, where=better)
                np.copyto(decision[shifted], level, where=better)
            decided[item], table = decision, result
        return table

    table = fold(np.zeros(1), children[-1])
    later = np.append(np.minimum.accumulate(table[::-1])[::-1][1:], np.inf)
    starts = np.flatnonzero(np.isfinite(table) & (table <= later))
    levels = np.zeros((len(starts), len(space.menus)), np.intp)
    blocks = np.zeros((len(starts), len(space.blocks)), bool)

    def unfold(rows: NDArray[np.intp], cell: NDArray[np.intp], items: Sequence[int]) -> NDArray[np.intp]:
        """Write what was decided for these items into `rows` of the result; returns the cells before the items."""
        for item in reversed(items):
            level, block = decided[item][cell], item - len(space.menus)
            before = cell - cells[item][level]
            if block < 0:
                levels[rows, item] = level
            else:
                blocks[rows, block], stays = level > 0, level == 0
                before[stays] = unfold(rows[stays], cell[stays], children[block])
            cell = before
        return cell

    unfold(np.arange(len(starts)), starts, children[-1])
    return levels, blocks


def _cells(saved: Sequence[Floats], children: Sequence[Sequence[int]], groups: int) -> list[NDArray[np.intp]]:
    """Savings in cells of the table, rounded.

    A cell is the largest saving that all savings are multiples of, but at least 1 / RESOLUTION of all that can be
    saved.
    """
    amounts = np.concatenate([np.zeros(1), *saved]).clip(0)

    def most(items: Sequence[int]) -> float:
        """The largest saving of these items together."""
        return sum(max(saved[i].max(), most(children[i - groups]) if i >= groups else 0) for i in items)

    cell = max(most(children[-1]) / RESOLUTION, 1e-300, _common(amounts[amounts > 1e-15]))
    return [np.rint(amount.clip(0) / cell).astype(np.intp) for amount in saved]


def _common(amounts: Floats) -> float:
    """The largest number that all amounts are multiples of, to nine digits; 0 when it is below 1e-6 of the largest."""
    if not len(amounts):
        return 0.0
    step = float(amounts.min())
    for _ in range(64):
        rest = np.abs(amounts / step - np.rint(amounts / step))
        if (rest <= 1e-9 * np.maximum(amounts / step, 1)).all():
            return step
        left = amounts - np.floor(amounts / step + 1e-9) * step
        step = float(left[left > 1e-9 * amounts.max()].min(initial=step / 2))
        if step < amounts.max() * 1e-6:
            return 0.0
    return 0.0
