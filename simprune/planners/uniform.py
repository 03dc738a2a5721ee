"""Uniform: the same share of every group is removed."""

from simprune.core.registry import register
from simprune.planners.search import Search, ranked
from simprune.planners.space import Selection, Space, Step
from simprune.planners.surplus import walk


@register("planner", "uniform")
def uniform(search: Search) -> tuple[Space, Selection]:
    """The same share of every channel group, the most redundant channels of each first; no blocks."""
    queue = [
        (count / menu.entry.group.size, Step(item, level))
        for item, menu in enumerate(search.space.menus)
        for level, count in enumerate(menu.counts)
        if level
    ]
    return search.space, walk(search, ranked(queue))
