"""Greedy: what damages least per cost saved is removed first."""

from simprune.core.registry import register
from simprune.planners.search import Search, greedy_selection
from simprune.planners.space import Selection, Space


@register("planner", "greedy")
def greedy(search: Search) -> tuple[Space, Selection]:
    """Least expected damage per cost saved first.

    Blocks have one queue and channels another. For every number of blocks from the front of their queue, the channels
    at the front of theirs are removed until the budget is met; of these selections the one that damages least is
    returned.
    """
    return search.space, greedy_selection(search)
