"""Clusters: similar structures are joined, and one represents each cluster."""

from itertools import pairwise

import numpy as np

from simprune.core.redundancy import ChannelRedundancy, Redundancy
from simprune.core.registry import register
from simprune.planners.search import Search, along, ranked
from simprune.planners.space import Selection, Space, Step


@register("planner", "clusters", source="MPruner 2024")
def clusters(search: Search) -> tuple[Space, Selection]:
    """One representative of every cluster of similar structures, clusters being joined until the budget is met.

    A channel joins the cluster of the one it correlates with most, the most redundant first; of two clusters that join,
    the less redundant representative stays. Blocks form runs, of which the first stays (MPruner, 2024).
    """
    joined = {menu.entry.name: _join(menu.entry) for menu in search.space.menus}
    space = search.space.ordered({name: order for name, (order, _) in joined.items()}, search.constraints)
    alike = _runs(search.space.redundancy)
    queue = [(-alike[entry.name], Step(len(space.menus) + place)) for place, entry in enumerate(space.blocks)]
    for item, menu in enumerate(space.menus):
        strength = joined[menu.entry.name][1]
        reached = [(level, count) for level, count in enumerate(menu.counts) if 0 < count <= len(strength)]
        queue += [(-strength[count - 1], Step(item, level)) for level, count in reached]
    return space, along(search.within(space), ranked(queue))


def _join(entry: ChannelRedundancy) -> tuple[list[int], list[float]]:
    """Units in the order in which they go, representatives last, and how redundant the joining ones were (falling)."""
    turn = {unit: place for place, unit in enumerate(entry.order)}
    stands = list(range(len(turn)))  # the representative of each unit's cluster
    order, strength = [], []
    for unit in sorted(turn, key=lambda unit: (-entry.redundancy[unit], turn[unit])):
        one, other = stands[unit], stands[entry.nearest[unit]]
        if one != other:
            gone, kept = sorted((one, other), key=turn.__getitem__)
            stands = [kept if stand == gone else stand for stand in stands]
            order.append(gone)
            strength.append(entry.redundancy[unit])
    return [*order, *(unit for unit in entry.order if unit not in set(order))], strength


def _runs(redundancy: Redundancy) -> dict[str, float]:
    """For every block how similar two runs of consecutive points were that joined when it went (falling).

    Two runs are as similar as the first point of the one and the least similar point of the other; a run that begins
    with the input of the blocks needs none of them. Where blocks were not scored by similarity: their own redundancy.
    """
    found, points = {entry.name: entry.redundancy for entry in redundancy.blocks}, redundancy.points
    if points is None or any(entry.score != "similarity" for entry in redundancy.blocks):
        return found
    values, names = points.similarity, list(points.names)
    for around, blocks in points.chains:
        places = [names.index(point) for point in around]
        runs, least = [[place] for place in range(len(places))], 1.0
        while len(runs) > 1:
            alike = [min(values[places[one[0]], places[each]] for each in other) for one, other in pairwise(runs)]
            first = int(np.argmax(alike))
            least = min(least, alike[first])
            found[blocks[runs[first + 1][0] - 1]] = float(least)
            runs[first : first + 2] = [runs[first] + runs[first + 1]]
    return found
