"""Threshold: everything that is redundant enough is removed."""

import numpy as np

from simprune.core.registry import register
from simprune.planners.search import Search, ranked
from simprune.planners.space import Selection, Space, Step
from simprune.planners.surplus import walk


@register("planner", "threshold")
def threshold(search: Search, *, threshold: float | None = None) -> tuple[Space, Selection]:
    """Everything whose redundancy reaches a threshold.

    Args:
        search: the space and the budget.
        threshold: redundancy in [0, 1]; None: the highest threshold that meets the budget.

    Raises:
        ValueError: for a threshold outside [0, 1].
    """
    space = search.space
    queue = [(-entry.redundancy, Step(len(space.menus) + index)) for index, entry in enumerate(space.blocks)]
    for item, menu in enumerate(space.menus):
        least = np.minimum.accumulate([menu.entry.redundancy[unit] for unit in menu.order])
        queue += [(-least[count - 1], Step(item, level)) for level, count in enumerate(menu.counts) if level]
    if threshold is None:
        return space, walk(search, ranked(queue))
    if not 0 <= threshold <= 1:
        raise ValueError(f"planner threshold: threshold must be in [0, 1]; got {threshold!r}")
    levels, blocks = space.along([step for rank, step in queue if -rank >= threshold])
    return space, Selection(levels[-1], blocks[-1])
