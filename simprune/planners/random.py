"""Random: the control that every other planner has to beat."""

from collections import Counter

import numpy as np

from simprune.core.registry import register
from simprune.planners.search import Search
from simprune.planners.space import Selection, Space, Step
from simprune.planners.surplus import walk


@register("planner", "random")
def random(search: Search, *, seed: int | None = None) -> tuple[Space, Selection]:
    """Blocks and channels in a seeded random order: the control that every other planner has to beat.

    `seed` counts before that of the run.
    """
    generator = np.random.default_rng(search.seed if seed is None else seed)
    orders = {menu.entry.name: generator.permutation(menu.entry.group.size).tolist() for menu in search.space.menus}
    space = search.space.ordered(orders, search.constraints)
    items = list(range(len(space.menus), len(space.menus) + len(space.blocks)))
    for item, menu in enumerate(space.menus):
        items += [item] * (len(menu.counts) - 1)
    level: Counter[int] = Counter()  # of a group: rises from 1 by 1 along the steps
    steps = []
    for item in generator.permutation(np.array(items, int)).tolist():
        level[item] += 1
        steps.append(Step(item, level[item]))
    return space, walk(search.within(space), steps)
