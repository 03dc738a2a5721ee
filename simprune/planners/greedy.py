"""Greedy: least expected damage per cost saved goes first."""

from simprune.core.registry import register
from simprune.planners.search import Search, greedy_choice
from simprune.planners.space import Choice, Space


@register("planner", "greedy")
def greedy(search: Search) -> tuple[Space, Choice]:
    """Least damage per cost saved first: the first channels of that order, for every number of first blocks of it."""
    return search.space, greedy_choice(search)
