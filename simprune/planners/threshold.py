"""Threshold: everything goes that is redundant enough."""

import numpy as np

from simprune.core.registry import register
from simprune.planners.search import Search, along, ranked
from simprune.planners.space import Selection, Space, Step


@register("planner", "threshold")
def threshold(search: Search, *, threshold: float | None = None) -> tuple[Space, Selection]:
    """Everything whose redundancy reaches a threshold: the highest that meets the budget; without one, `threshold`."""
    space = search.space
    queue = [(-entry.redundancy, Step(len(space.menus) + place)) for place, entry in enumerate(space.blocks)]
    for item, menu in enumerate(space.menus):
        least = np.minimum.accumulate([menu.entry.redundancy[unit] for unit in menu.order])
        queue += [(-least[count - 1], Step(item, level)) for level, count in enumerate(menu.counts) if level]
    if threshold is None:
        return space, along(search, ranked(queue))
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"planner threshold: threshold must be in [0, 1]; got {threshold!r}")
    return space, space.chosen([step for rank, step in queue if -rank >= threshold])
