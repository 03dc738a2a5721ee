"""Uniform: the same share of every group is removed."""

from simprune.core.registry import register
from simprune.planners.search import Search, uniform_selection
from simprune.planners.space import Selection, Space


@register("planner", "uniform")
def uniform(search: Search) -> tuple[Space, Selection]:
    """The same share of every channel group, the most redundant channels of each first; no blocks."""
    return search.space, uniform_selection(search)
