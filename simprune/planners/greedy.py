"""Greedy: least expected damage per cost saved goes first."""

from simprune.core.registry import register
from simprune.planners.search import Search, greedy_selection
from simprune.planners.space import Selection, Space


@register("planner", "greedy")
def greedy(search: Search) -> tuple[Space, Selection]:
    """Least damage per cost saved first: the first channels of that order, for every number of first blocks of it."""
    return search.space, greedy_selection(search)
