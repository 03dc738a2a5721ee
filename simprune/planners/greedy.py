"""Greedy: what damages least per cost saved is removed first."""

from simprune.core.registry import register
from simprune.planners.search import Search, greedy_selections
from simprune.planners.space import Selection, Space
from simprune.planners.surplus import best_without_surplus


@register("planner", "greedy")
def greedy(search: Search) -> tuple[Space, Selection]:
    """Least expected damage per cost saved first.

    Blocks have one queue and channels another. For every number of blocks from the front of their queue, the channels
    at the front of theirs are removed until the budget is met, and what is then not needed is given back; of these
    selections the one that damages least is returned.
    """
    return search.space, best_without_surplus(search, *greedy_selections(search))
