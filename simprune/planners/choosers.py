"""Choosers: what goes for a budget. Each is a function (Search) -> (Space, Choice); to add one, name it in `CHOOSERS`.

A chooser that cannot meet the budget returns the furthest it can go. All but `optimal` walk along a fixed sequence of
steps and stop where the budget is met, so that a larger budget never costs more.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import numpy as np

from simprune.core.names import did_you_mean
from simprune.core.redundancy import ChannelRedundancy, Redundancy
from simprune.planners.optimal import optimal
from simprune.planners.search import Search, along, greedy_choice, ranked, uniform_choice
from simprune.planners.space import Choice, Space, Step

Chooser = Callable[..., tuple[Space, Choice]]


def greedy(search: Search) -> tuple[Space, Choice]:
    """Least damage per cost saved first: the first channels of that order, for every number of first blocks of it."""
    return search.space, greedy_choice(search)


def uniform(search: Search) -> tuple[Space, Choice]:
    """The same share of every channel group, the most redundant channels of each first; no blocks."""
    return search.space, uniform_choice(search)


def threshold(search: Search, threshold: float | None = None) -> tuple[Space, Choice]:
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


def clusters(search: Search) -> tuple[Space, Choice]:
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
    found, view = {entry.name: entry.redundancy for entry in redundancy.blocks}, redundancy.view
    if view is None or any(entry.score != "similarity" for entry in redundancy.blocks):
        return found
    values, names = view.similarities(), list(view.whole.names)
    for chain in view.stream.chains:
        places = [names.index(point) for point in chain.points]
        runs, least = [[place] for place in range(len(places))], 1.0
        while len(runs) > 1:
            alike = [min(values[places[one[0]], places[each]] for each in other) for one, other in pairwise(runs)]
            first = int(np.argmax(alike))
            least = min(least, alike[first])
            found[chain.blocks[runs[first + 1][0] - 1].name] = float(least)
            runs[first : first + 2] = [runs[first] + runs[first + 1]]
    return found


def random(search: Search) -> tuple[Space, Choice]:
    """Blocks and channels in a seeded random order: the control that every other chooser has to beat."""
    generator = np.random.default_rng(search.seed)
    orders = {menu.entry.name: generator.permutation(menu.entry.group.size).tolist() for menu in search.space.menus}
    space = search.space.ordered(orders, search.constraints)
    queue = [(0.0, Step(len(space.menus) + place)) for place in range(len(space.blocks))]
    for item, menu in enumerate(space.menus):
        queue += [(0.0, Step(item, level)) for level in range(1, len(menu.counts))]
    steps = [queue[place][1] for place in generator.permutation(len(queue))]
    return space, along(search.within(space), _one_by_one(steps))


def _one_by_one(steps: Sequence[Step]) -> list[Step]:
    """Levels of a group in rising order, at the places where any of them stood."""
    reached: dict[int, int] = {}
    ordered = []
    for step in steps:
        reached[step.item] = reached.get(step.item, 0) + 1
        ordered.append(Step(step.item, reached[step.item]))
    return ordered


CHOOSERS: dict[str, Chooser] = {
    "greedy": greedy,
    "optimal": optimal,
    "uniform": uniform,
    "threshold": threshold,
    "clusters": clusters,
    "random": random,
}


def chooser(name: str) -> Chooser:
    """A chooser by name; raises KeyError that names the nearest."""
    if name not in CHOOSERS:
        raise KeyError(f"no planner named {name!r}; {did_you_mean(name, CHOOSERS)}")
    return CHOOSERS[name]


def check_options(name: str, options: Collection[str]) -> None:
    """Raise ValueError, with what was probably meant, for an option that the chooser does not take."""
    taken = set(inspect.signature(chooser(name)).parameters) - {"search"}
    for key in options:
        if key not in taken:
            raise ValueError(f"planner {name} takes no option {key!r}; {did_you_mean(key, taken)}")
