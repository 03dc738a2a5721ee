"""Clusters: similar structures are joined, and one represents every cluster."""

from itertools import pairwise

from simprune.core.redundancy import ChannelRedundancy, Redundancy
from simprune.core.registry import register
from simprune.core.ties import ALIKE, first_least
from simprune.planners.search import Search, ranked
from simprune.planners.space import Selection, Space, Step
from simprune.planners.surplus import walk


@register("planner", "clusters", source="MPruner 2024")
def clusters(search: Search) -> tuple[Space, Selection]:
    """One representative of every cluster of similar structures, clusters being joined until the budget is met.

    A channel joins the cluster of the channel that it correlates with most; the most redundant channels join first.
    When two clusters join, the less redundant representative stays and the other is removed. Blocks form runs of
    consecutive blocks, and the first block of a run stays (MPruner, 2024).
    """
    joined = {menu.entry.name: _join(menu.entry) for menu in search.space.menus}
    space = search.space.ordered({name: order for name, (order, _) in joined.items()}, search.constraints)
    similarity = _runs(search.space.redundancy)
    queue = [(-similarity[entry.name], Step(len(space.menus) + index)) for index, entry in enumerate(space.blocks)]
    for item, menu in enumerate(space.menus):
        strength = dict(enumerate(joined[menu.entry.name][1], 1))  # by the number of units removed until then
        queue += [(-strength[count], Step(item, level)) for level, count in enumerate(menu.counts) if count in strength]
    return space, walk(search.within(space), ranked(queue))


def _join(entry: ChannelRedundancy) -> tuple[list[int], list[float]]:
    """Join the units of a group to clusters until one is left.

    Returns the units in the order in which they are removed, those that were never removed last, and the redundancy
    (falling) of the unit that caused a removal.
    """
    rank = {unit: index for index, unit in enumerate(entry.order)}
    representative = list(range(len(rank)))  # of the cluster of every unit
    order, strength = [], []
    for unit in sorted(rank, key=lambda unit: (-entry.redundancy[unit], rank[unit])):
        own, nearest = representative[unit], representative[entry.nearest[unit]]
        if own != nearest:
            removed, stays = sorted((own, nearest), key=rank.__getitem__)
            representative = [stays if current == removed else current for current in representative]
            order.append(removed)
            strength.append(entry.redundancy[unit])
    return [*order, *(unit for unit in entry.order if unit not in set(order))], strength


def _runs(redundancy: Redundancy) -> dict[str, float]:
    """How similar the two runs of consecutive blocks were that joined when a block was removed, by block (falling).

    The similarity of two runs is the least similarity between the first point of the earlier run and any point of the
    later run. The run that begins with the input of the blocks needs no block at all. Where blocks were not scored by
    similarity, the numbers are the blocks' own redundancy.
    """
    strength, points = {entry.name: entry.redundancy for entry in redundancy.blocks}, redundancy.points
    if points is None or any(entry.score != "similarity" for entry in redundancy.blocks):
        return strength
    values, names = points.similarity, list(points.names)
    for chain, blocks in points.chains:
        rows = [names.index(point) for point in chain]
        runs, least = [[position] for position in range(len(rows))], 1.0
        while len(runs) > 1:
            similar = [min(values[rows[left[0]], rows[point]] for point in right) for left, right in pairwise(runs)]
            first = first_least([-value for value in similar], ALIKE)
            least = min(least, similar[first])
            strength[blocks[runs[first + 1][0] - 1]] = float(least)
            runs[first : first + 2] = [runs[first] + runs[first + 1]]
    return strength
