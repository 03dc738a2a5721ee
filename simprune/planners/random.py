"""Random: the control that every other planner has to beat."""

from collections.abc import Sequence

import numpy as np

from simprune.core.registry import register
from simprune.planners.search import Search, along
from simprune.planners.space import Selection, Space, Step


@register("planner", "random")
def random(search: Search) -> tuple[Space, Selection]:
    """Blocks and channels in a seeded random order: the control that every other planner has to beat."""
    generator = np.random.default_rng(search.seed)
    orders = {menu.entry.name: generator.permutation(menu.entry.group.size).tolist() for menu in search.space.menus}
    space = search.space.ordered(orders, search.constraints)
    queue = [(0.0, Step(len(space.menus) + place)) for place in range(len(space.blocks))]
    for item, menu in enumerate(space.menus):
        queue += [(0.0, Step(item, level)) for level in range(1, len(menu.counts))]
    steps = [queue[place][1] for place in generator.permutation(len(queue))]
    return space, along(search.within(space), _one_by_one(steps))


def _one_by_one(steps: Sequence[Step]) -> list[Step]:
    """Levels of a group in rising order, at the places where any of them stood."""
    reached: dict[int, int] = {}
    ordered = []
    for step in steps:
        reached[step.item] = reached.get(step.item, 0) + 1
        ordered.append(Step(step.item, reached[step.item]))
    return ordered
