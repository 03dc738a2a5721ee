"""Random: the control that every other planner has to beat."""

from collections.abc import Sequence

import numpy as np

from simprune.core.registry import register
from simprune.planners.search import Search, best_along
from simprune.planners.space import Selection, Space, Step


@register("planner", "random")
def random(search: Search, *, seed: int | None = None) -> tuple[Space, Selection]:
    """Blocks and channels in a seeded random order: the control that every other planner has to beat.

    `seed` counts before that of the run.
    """
    generator = np.random.default_rng(search.seed if seed is None else seed)
    orders = {menu.entry.name: generator.permutation(menu.entry.group.size).tolist() for menu in search.space.menus}
    space = search.space.ordered(orders, search.constraints)
    steps = [Step(len(space.menus) + index) for index in range(len(space.blocks))]
    for item, menu in enumerate(space.menus):
        steps += [Step(item, level) for level in range(1, len(menu.counts))]
    shuffled = [steps[index] for index in generator.permutation(len(steps))]
    return space, best_along(search.within(space), _with_rising_levels(shuffled))


def _with_rising_levels(steps: Sequence[Step]) -> list[Step]:
    """The same items in the same order, and the levels of a group renumbered so that they rise: 1, 2, ..."""
    level: dict[int, int] = {}
    ordered = []
    for step in steps:
        level[step.item] = level.get(step.item, 0) + 1
        ordered.append(Step(step.item, level[step.item]))
    return ordered
