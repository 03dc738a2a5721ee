"""Giving back: what a selection need not remove to meet the budget stays in the network.

The last step of a walk may save far more than the budget asks for: a block, or many channels that must go at once.
Others that were removed before it are then no longer needed.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from simprune.core.structures import UnitGroup
from simprune.core.ties import OUTPUT, first_least, levelled
from simprune.planners.search import RATE, TINY, Search, best, best_along
from simprune.planners.space import Floats, Menu, Selection, Space, Step

TRIED = 8  # selections of least damage that give back their surplus, before the best of them is taken
PART = 4  # of the surplus: at most 1 / PART is given back to one group at once


def walk(search: Search, steps: Sequence[Step]) -> Selection:
    """Take steps until the budget is met (see `best_along`); what is then not needed is given back, the last first."""
    return giving_back(search, best_along(search, steps), steps)


def best_without_surplus(search: Search, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Selection:
    """The best selection (see `best`), after the most promising ones have given back what they need not remove.

    Args:
        search: the budget.
        levels: (N, groups), the level of every group.
        blocks: (N, blocks), whether a block is removed.
    """
    damage = np.where(search.met(search.space.costs(levels, blocks)), search.space.damage(levels, blocks), np.inf)
    order = levelled(damage, OUTPUT).argsort(kind="stable")[:TRIED]
    rows = [best(search, levels, blocks), *(Selection(levels[row], blocks[row]) for row in order)]
    lighter = [giving_back(search, row) for row in rows]
    return best(search, np.stack([row.levels for row in lighter]), np.stack([row.blocks for row in lighter]))


def without_surplus(search: Search, selection: Selection) -> tuple[Space, Selection]:
    """A selection of any planner of which nothing can be given back: no block, no level, and no single unit.

    Where the units of a group differ in size, a smaller one than the last of the order may fit into what the budget has
    left; it then changes its place in the order.

    Args:
        search: the space and the budget.
        selection: what is removed.

    Returns:
        The space, in which the order of such groups may differ, and the selection.
    """
    while True:
        selection = giving_back(search, selection)
        better = next(filter(None, (_smaller_unit(search, selection, item) for item in _uneven(search))), None)
        if better is None:
            return search.space, selection
        search, selection = search.within(better[0]), better[1]


def _uneven(search: Search) -> list[int]:
    """The groups whose units differ in size; none where costs are tables of levels."""
    if search.space.extra or not search.ceilings:
        return []
    groups = (menu.entry.group for menu in search.space.menus)
    return [item for item, group in enumerate(groups) if len({*map(partial(_size, group), range(group.size))}) > 1]


def _size(group: UnitGroup, unit: int) -> tuple[int, ...]:
    """How many entries of every tensor a unit owns."""
    return tuple(len(part.indices[unit]) for part in group.slices)


def _smaller_unit(search: Search, selection: Selection, item: int) -> tuple[Space, Selection] | None:
    """The space and the selection with one unit of a group given back, as far as one fits into the budget."""
    space, menu = search.space, search.space.menus[item]
    gone = menu.gone(int(selection.levels[item]))
    for unit in reversed(list({_size(menu.entry.group, unit): unit for unit in gone}.values())):
        others = tuple(other for other in gone if other != unit)
        order = (*others, unit, *menu.order[len(gone) :])
        changed = Menu.of(menu.entry, search.constraints, order)
        if len(others) in changed.counts:
            menus = (*space.menus[:item], changed, *space.menus[item + 1 :])
            levels = selection.levels.copy()
            levels[item] = changed.counts.index(len(others))
            lighter = replace(space, menus=menus), Selection(levels, selection.blocks)
            if search.met(lighter[0].cost(lighter[1])[None])[0]:
                return lighter
    return None


def giving_back(search: Search, selection: Selection, steps: Sequence[Step] | None = None) -> Selection:
    """Give back blocks, and levels of groups, as long as the budget is met.

    Afterwards no block and no level can be given back by itself without breaking the budget. Where the number of blocks
    is prescribed, all blocks stay removed.

    Args:
        search: the space and the budget; without limits, or where the selection breaks them, nothing is given back.
        selection: what is removed.
        steps: in the order in which they were taken, of which the last are given back first; None: first goes what
            damages most for what it saves.

    Returns:
        A selection that removes less, or the same.
    """
    space, groups = search.space, len(search.space.menus)
    levels = np.where(space.inside[selection.blocks, :groups].any(0), 0, selection.levels)
    state = Selection(levels, space.outermost(selection.blocks[None])[0])
    if not search.ceilings or not search.met(space.cost(state)[None])[0]:
        return selection
    turns = None if steps is None else _turns(search, steps)
    while True:
        items, levels, blocks = _lighter(search, state)
        costs = space.costs(levels, blocks)
        fits = np.flatnonzero(search.met(costs))
        if not len(fits):
            return state
        if turns is None:
            more = (search.scalar(costs[fits]) - search.scalar(space.cost(state)[None])).clip(TINY)
            before = space.damage(state.levels[None], state.blocks[None])
            rank = (before - space.damage(levels[fits], blocks[fits])) / more
        else:
            taken = ((items[row], state.levels[items[row]] if items[row] < groups else 0) for row in fits)
            rank = np.array([turns.get(step, -1) for step in taken], float)
        row = int(fits[first_least(-rank, RATE) if turns is None else rank.argmax()])
        state = _several(search, state, items[row], costs[row]) or Selection(levels[row], blocks[row])


def _turns(search: Search, steps: Sequence[Step]) -> dict[tuple[int, int], int]:
    """(item, level) -> the turn at which a step took the group to the level, or removed the block (level 0)."""
    groups = len(search.space.menus)
    return {(step.item, step.level if step.item < groups else 0): turn for turn, step in enumerate(steps)}


def _lighter(search: Search, state: Selection) -> tuple[list[int], NDArray[np.intp], NDArray[np.bool_]]:
    """The selections that remove one level less of one group, or one block less; and the items, row by row."""
    groups = len(search.space.menus)
    items = np.flatnonzero(state.levels).tolist()
    if search.blocks is None:
        items += (groups + np.flatnonzero(state.blocks)).tolist()
    levels, blocks = np.repeat(state.levels[None], len(items), 0), np.repeat(state.blocks[None], len(items), 0)
    for row, item in enumerate(items):
        if item < groups:
            levels[row, item] -= 1
        else:
            blocks[row, item - groups] = False
    return items, levels, blocks


def _several(search: Search, state: Selection, item: int, cost: Floats) -> Selection | None:
    """Several levels of a group given back at once, where the surplus is many times what one level costs, or None."""
    space = search.space
    if item >= len(space.menus):
        return None
    columns = [space.kinds.index(kind) for kind in search.ceilings]
    now = space.cost(state)[columns]
    surplus, each = np.array([*search.ceilings.values()]) - now, np.maximum(cost[columns] - now, 1e-300)
    count = min(int((surplus / each).min() / PART), int(state.levels[item]))
    levels = state.levels.copy()
    levels[item] -= count
    fits = count > 1 and search.met(space.costs(levels[None], state.blocks[None]))[0]
    return Selection(levels, state.blocks) if fits else None
