"""The least expected damage for a budget: dynamic programming over what every structure saves.

Where damage and savings add up over structures (no interactions, no weight between two groups, one kind of cost is
limited), the selection is optimal up to the resolution of the table. Elsewhere a channel saves less when its neighbours
have gone, and damages more: both are then taken at fixed points on the way from nothing removed to everything removed,
improved in rounds, and of all selections found the best by exact cost and damage is taken. None of that depends on the
size of the budget, so that a larger one never damages more; greedy's and uniform's selections are among the candidates.
Where the number of blocks is given, greedy says which these are.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simprune.core.registry import register
from simprune.planners.search import Search, best, everything, greedy_selection, savings, uniform_selection
from simprune.planners.space import Floats, Selection, Space

RESOLUTION = 4096  # cells of the table, unless all savings are multiples of something larger
POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of what can be saved: where savings are measured
ROUNDS = 3  # with one kind of cost; with several, every kind alone and all together are tried once

Rows = tuple[NDArray[np.intp], NDArray[np.bool_]]  # levels (N, groups), blocks (N, blocks)


@register("planner", "optimal")
def optimal(search: Search) -> tuple[Space, Selection]:
    """Least expected damage: dynamic programming over channels and blocks, never worse than greedy or uniform."""
    space = search.space
    found = [greedy_selection(search), uniform_selection(search)]
    fixed = None if search.blocks is None else found[0].blocks
    kinds = tuple(search.ceilings)
    mixes = dict.fromkeys([kinds, *((kind,) for kind in kinds)])
    for mix in mixes:
        found += _family(search, mix, ROUNDS if len(mixes) == 1 else 1, fixed)
    return space, best(search, np.stack([each.levels for each in found]), np.stack([each.blocks for each in found]))


def _family(search: Search, kinds: tuple[str, ...], rounds: int, fixed: NDArray[np.bool_] | None) -> list[Selection]:
    """The best selection of every table made with savings of these kinds."""
    space = search.space
    first = _savings(search, space.nothing, kinds)
    last = _savings(search, everything(space), kinds)
    additive = all(np.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(first, last, strict=True))
    if additive and not space.interacting:
        return [best(search, *pareto_selections(space, first, fixed=fixed))]
    whole, least = space.cost(space.nothing), space.cost(everything(space))
    found = []
    for point in POINTS:
        limits = {kind: whole[at] - point * (whole[at] - least[at]) for at, kind in enumerate(space.kinds)}
        nearby = Search(space, {kind: limits[kind] for kind in kinds})
        state = greedy_selection(nearby)
        for _ in range(rounds):
            rows = pareto_selections(space, _savings(search, state, kinds), state, fixed)
            found.append(best(search, *rows))
            before, state = state, best(nearby, *rows)
            if (before.levels == state.levels).all() and (before.blocks == state.blocks).all():
                break
    return found


def _savings(search: Search, state: Selection, kinds: Sequence[str]) -> list[Floats]:
    """What every level of every group saves, and, as (0, saving), every block whose channels are all there."""
    space = search.space
    blocks = np.repeat(state.blocks[None], 2 * len(space.blocks), 0)
    levels = np.repeat(state.levels[None], 2 * len(space.blocks), 0)
    for place in range(len(space.blocks)):
        blocks[2 * place : 2 * place + 2, space.around(len(space.menus) + place)] = False
        blocks[2 * place : 2 * place + 2, place] = (False, True)
        levels[2 * place, space.inside(place)] = 0
    kept = search.scalar(space.costs(levels, blocks), kinds)
    return [*savings(search, state, kinds), *(np.array([0, a - b]) for a, b in kept.reshape(-1, 2))]


def pareto_selections(
    space: Space, saved: Sequence[Floats], state: Selection | None = None, fixed: NDArray[np.bool_] | None = None
) -> Rows:
    """For every amount saved the selection of least damage, by dynamic programming; dominated selections left out.

    `saved`: per group one saving per level, then per block (0, saving). A block either goes, or stays and its channels
    are chosen; `fixed`: which go. Damages interact with those of `state`. Time O(levels x cells), memory
    O(structures x cells).
    """
    children, top = space.children()
    damage = space.damages(state or space.nothing)
    cells = _cells(saved, children, top, len(space.menus))
    decided: dict[int, NDArray[np.int16]] = {}

    def fold(table: Floats, items: Sequence[int]) -> Floats:
        """The table, least damage by amount saved as far as one can save by now, with these items chosen too."""
        for item in items:
            block = item - len(space.menus)
            kept = fold(table, children[block]) if block >= 0 else table
            result = np.full(max(len(kept), len(table) + int(cells[item].max())), np.inf)
            may_stay, may_go = (True, True) if fixed is None or block < 0 else (not fixed[block], fixed[block])
            if may_stay:
                result[: len(kept)] = kept
            decision = np.zeros(len(result), np.int16)
            for level in range(1, len(damage[item]) if may_go else 1):
                moved = slice(cells[item][level], cells[item][level] + len(table))
                other = table + damage[item][level]
                better = other < result[moved]
                np.copyto(result[moved], other, where=better)
                np.copyto(decision[moved], level, where=better)
            decided[item], table = decision, result
        return table

    table = fold(np.zeros(1), top)
    later = np.append(np.minimum.accumulate(table[::-1])[::-1][1:], np.inf)
    starts = np.flatnonzero(np.isfinite(table) & (table <= later))
    levels = np.zeros((len(starts), len(space.menus)), np.intp)
    blocks = np.zeros((len(starts), len(space.blocks)), bool)

    def unfold(rows: NDArray[np.intp], cell: NDArray[np.intp], items: Sequence[int]) -> NDArray[np.intp]:
        for item in reversed(items):
            level, block = decided[item][cell], item - len(space.menus)
            if block < 0:
                levels[rows, item] = level
                cell = cell - cells[item][level]
                continue
            blocks[rows, block] = level > 0
            stays = level == 0
            inner = unfold(rows[stays], cell[stays], children[block])
            cell = cell - cells[item][level]
            cell[stays] = inner
        return cell

    unfold(np.arange(len(starts)), starts, top)
    return levels, blocks


def _cells(
    saved: Sequence[Floats], children: Sequence[Sequence[int]], top: Sequence[int], groups: int
) -> list[NDArray[np.intp]]:
    """Savings in whole cells of the table."""
    amounts = np.concatenate([np.zeros(1), *saved]).clip(0)

    def most(items: Sequence[int]) -> float:
        tops = [max(saved[i].max(), most(children[i - groups]) if i >= groups else 0) for i in items]
        return sum(tops)

    cell = max(most(top) / RESOLUTION, 1e-300)
    cell = max(cell, _common(amounts[amounts > 1e-15]))
    return [np.rint(each.clip(0) / cell).astype(np.intp) for each in saved]


def _common(amounts: Floats) -> float:
    """The largest number of which all are multiples, to nine digits; 0 when that is tiny."""
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
