"""Budgets of latency and memory: the edited network is measured, and the plan corrected until it meets the budget.

A planner meets ceilings of costs that it can compute. The measured costs of a network differ from these, so the ceiling
is moved until the measured network is just below the limit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from statistics import median

import numpy as np
from torch import nn

from simprune.core.cost import Example
from simprune.core.plan import Plan
from simprune.edit.apply import apply
from simprune.planners.budget import Budget
from simprune.planners.search import Search, best, everything, ranked
from simprune.planners.space import Selection, Space, Step
from simprune.trace.memory import peak_memory
from simprune.trace.network import Network
from simprune.trace.timing import Timer, alternate
from simprune.tune.latency_table import Timing, latency_table

ROUNDS = 10  # networks that one correction measures at most; half as many when channels are given back
CEILINGS = 3  # a correction tries at most so many ceilings per network, as several may lead to the same selection
CLOSE = 0.95  # share of a limit: a network that uses this much of it, or more, is near enough
AIM = (1 + CLOSE) / 2  # share of a limit that the next ceiling aims at: the middle of what is near enough
INSIDE = 0.1  # share of the gap between two ceilings: the next ceiling keeps this distance from both
FINE = 2e-3  # share of the cost: ceilings nearer to each other than this count as one
PARTS = 512  # selections to choose from when channels are given back
TURNS = 5, 31  # how often original and candidate are timed: at least, and at most where the ratio is near the limit

Choose = Callable[[Search], tuple[Space, Selection]]  # a planner with its options
Draft = Callable[[Space, Selection], Plan]
Timings = dict[tuple[str, ...], Timing]  # by the names of the structures
Measured = tuple[Space, Selection, dict[str, float]]  # a selection, and what its network takes, by kind of cost


@dataclass(frozen=True)
class Point:
    """A ceiling, and the share of the limits that the network planned for it uses when measured; 1 is the limit."""

    ceiling: float
    used: float


@dataclass
class Bench:
    """Measures networks, and remembers what it has measured.

    `example`: the inputs. `draft`: returns the plan of a selection. `whole`: costs of the original by kind, in seconds
    or bytes per input. `timings`: of structures, by their names.
    """

    network: Network
    example: Example
    timer: Timer
    draft: Draft
    whole: dict[str, float] = field(default_factory=dict)
    timings: Timings = field(default_factory=dict)

    def timing(self, space: Space) -> Timing:
        """The seconds that the structures of a space save. Structures are timed once."""
        names = tuple(entry.name for entry in (*space.blocks, *(menu.entry for menu in space.menus)))
        if names not in self.timings:
            self.timings[names] = latency_table(
                space, self.network.model, self.example, lambda selection: self.edited(space, selection), self.timer
            )
        return self.timings[names]

    def edited(self, space: Space, selection: Selection) -> nn.Module:
        """The network without what is selected."""
        return apply(self.draft(space, selection), self.network)

    def original(self, kind: str) -> float:
        """A cost of the original: seconds for latency, peak bytes per input for memory."""
        if kind not in self.whole:
            model, example = self.network.model, self.example
            self.whole[kind] = peak_memory(model, example) if kind == "memory" else self.timer(model, *example)
        return self.whole[kind]

    def measure(self, space: Space, selection: Selection, limits: Mapping[str, float]) -> dict[str, float]:
        """Limited costs of the network without the selection: seconds for latency, peak bytes per input for memory."""
        if not selection.levels.any() and not selection.blocks.any():
            return {kind: self.original(kind) for kind in limits}
        small, costs = self.edited(space, selection), {}
        if "memory" in limits:
            costs["memory"] = peak_memory(small, self.example)
        if "latency" in limits:
            costs["latency"] = self.seconds(small, limits["latency"])
        return costs

    def seconds(self, small: nn.Module, limit: float) -> float:
        """Seconds of a network: those of the original times the median ratio of the two, timed in turns.

        Timing goes on as long as it is unclear whether the network meets the `limit`, in seconds.
        """
        whole, ratios = self.original("latency"), []
        least, most = TURNS
        for before, after in islice(alternate(self.network.model, small, self.example, self.timer), most):
            ratios = sorted([*ratios, whole * after / before])
            outside = max(int((len(ratios) - 2 * len(ratios) ** 0.5) / 2), 0)
            low, high = ratios[outside], ratios[-1 - outside]  # 95 % interval of the median, by order statistics
            if len(ratios) >= least and (high < CLOSE * limit or low > limit or CLOSE * limit <= low <= high <= limit):
                break
        return median(ratios)


def meet(search: Search, budget: Budget, choose: Choose, bench: Bench) -> Measured:
    """Search for a selection whose measured network meets the budget; if none does, take the nearest measured one.

    For a limit on latency, the planner sees a table of the seconds that every structure saves, at the widths that are
    worth having. Its ceiling is corrected until the measured network is at most 5 % below the limit. The unused part of
    the budget is given back to channels, first at the same widths, then at all widths.

    For a limit on memory, the largest share of the macs is searched whose network meets it, because the peak of a
    network is no sum over its structures.

    Args:
        search: the space and the ceilings of macs, params and bytes.
        budget: with at least one limit of latency or memory.
        choose: the planner.
        bench: measures networks.

    Returns:
        The space, the selection, and the limited costs of its network by kind: seconds, or peak bytes per input.
    """
    kinds = budget.measured.limits
    nothing = search.space.nothing
    before = {kind: bench.original(kind) for kind in kinds}
    met = all(before[kind] <= limit.of(before[kind]) for kind, limit in kinds.items())
    if met and search.met(search.space.cost(nothing)[None])[0] and not search.blocks:
        return search.space, nothing, before
    coarse = search
    if "latency" in kinds:
        timing = bench.timing(search.space)
        bench.whole["latency"] = timing.table.whole
        search = replace(search, space=replace(search.space, extra={"latency": timing.table}))
        coarse = search.within(search.space.only(timing.worth))
    limits = {kind: limit.of(bench.original(kind)) for kind, limit in kinds.items()}
    kind = "latency" if "latency" in limits else "macs"
    result = _corrected(coarse, kind, limits, choose, bench, ROUNDS)
    for widths in (coarse, search) if coarse is not search else (search,):
        if result[1].levels.any() and _worst(result[2], limits) < CLOSE:
            result = _widened(widths, result)
            give_back = partial(_giving_back, *result[:2])
            result = _corrected(widths, kind, limits, give_back, bench, ROUNDS // 2, result)
    if len(limits) > 1 and _worst(result[2], limits) > 1:
        result = _corrected(search, "macs", limits, choose, bench, ROUNDS)
    return result


def not_measured(budget: Budget, before: Mapping[str, float], after: Mapping[str, float]) -> ValueError:
    """The error for a budget of latency or memory that no measured network met.

    Args:
        budget: that was not met.
        before: costs of the original, in seconds or bytes, by kind.
        after: costs of the nearest network.
    """
    shown = {"latency": lambda value: f"{1e3 * value:.3g} ms", "memory": lambda value: f"{value:,.0f} bytes"}
    reached = ", ".join(f"{kind} {shown[kind](after[kind])} of {shown[kind](before[kind])}" for kind in after)
    return ValueError(f"budget: {budget} was not reached by any network that was measured; the nearest has {reached}")


def _widened(search: Search, measured: Measured) -> Measured:
    """The same selection in the search's space, which has more levels, in the order of the selection's space."""
    narrow, selection, costs = measured
    space = search.space.ordered({menu.entry.name: menu.order for menu in narrow.menus}, search.constraints)
    counts = [menu.counts[level] for menu, level in zip(narrow.menus, selection.levels, strict=True)]
    levels = [menu.counts.index(count) for menu, count in zip(space.menus, counts, strict=True)]
    return space, Selection(np.array(levels, np.intp), selection.blocks), costs


def _giving_back(space: Space, selection: Selection, search: Search) -> tuple[Space, Selection]:
    """The same blocks, and the same share of the selected levels in every group, just large enough for the ceilings.

    Between two ceilings that hardly differ a planner may remove a block, or many channels at once, where it removed a
    few channels before. That saves more than the budget asks for, and the surplus is given back to the channels.
    """
    queue = [
        (level / most, Step(item, level)) for item, most in enumerate(selection.levels) for level in range(1, most + 1)
    ]
    levels, _ = space.along(ranked(queue))
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, PARTS).astype(int))]
    return space, best(search.within(space), levels, np.repeat(selection.blocks[None], len(levels), 0))


def _corrected(
    search: Search,
    kind: str,
    limits: Mapping[str, float],
    choose: Choose,
    bench: Bench,
    rounds: int,
    start: Measured | None = None,
) -> Measured:
    """Move the ceiling of one kind of cost until the measured network is just below its limits.

    Args:
        search: the space and the other ceilings.
        kind: whose ceiling moves.
        limits: on what is measured, in seconds or bytes.
        choose: the planner.
        bench: measures networks.
        rounds: networks that are measured at most.
        start: a measured selection that meets the limits, if one is known.

    Returns:
        The measured selection that is nearest to `AIM` below the limits; if none meets them, the nearest to them.
    """
    column = search.space.kinds.index(kind)
    extremes = search.space.nothing, everything(search.space)
    whole, least = (float(search.space.cost(extreme)[column]) for extreme in extremes)
    top = min(search.ceilings.get(kind, whole), whole)
    over = [Point(top, _worst({limited: bench.original(limited) for limited in limits}, limits))]
    under: Point | None = None
    seen: dict[bytes, Measured] = {}
    ceiling = top * min(AIM / over[0].used, 1.0) if over[0].used > 1 else top
    if start is not None:
        seen[_key(start[1])] = start
        under = Point(float(start[0].cost(start[1])[column]), _worst(start[2], limits))
        ceiling = _next(over, under, least, halve=False)
    for attempt in range(CEILINGS * rounds):
        space, selection = choose(replace(search, ceilings=search.ceilings | {kind: ceiling}))
        key = _key(selection)
        if key not in seen and len(seen) == rounds + (start is not None):
            break
        seen[key] = seen.get(key) or (space, selection, bench.measure(space, selection, limits))
        used, reached = _worst(seen[key][2], limits), float(space.cost(selection)[column])
        if CLOSE <= used <= 1 or (used <= 1 and ceiling >= top):
            break  # near enough, or nothing has to be removed
        if used <= 1:
            under = Point(ceiling, used)
        else:
            over.append(Point(min(ceiling, reached), used))
            if reached > ceiling + FINE * abs(ceiling):
                break  # the planner cannot reach this ceiling, nor any lower one
        if over[-1].ceiling - (under.ceiling if under else least) <= FINE * top:
            break  # no selection lies between the two ceilings
        ceiling = _next(over, under, least, halve=attempt % 3 == 2)
    return min(seen.values(), key=lambda measured: _miss(_worst(measured[2], limits)))


def _key(selection: Selection) -> bytes:
    return selection.levels.tobytes() + selection.blocks.tobytes()


def _next(over: Sequence[Point], under: Point | None, least: float, halve: bool) -> float:
    """The ceiling to try next, by regula falsi; as long as no ceiling led to the limits, by the secant of the last two.

    `over`: ceilings whose networks exceeded the limits, the lowest last. `under`: the last ceiling whose network met
    them. `least`: no ceiling may be lower. `halve`: bisect instead.
    """
    high, second = over[-1], under or over[-2]
    low = under.ceiling if under else least
    slope = (high.used - second.used) / (high.ceiling - second.ceiling) if high.ceiling != second.ceiling else 0.0
    wanted = high.ceiling - (high.used - AIM) / slope if slope > 0 and not halve else (low + high.ceiling) / 2
    edge = INSIDE * (high.ceiling - low)
    return min(max(wanted, low + edge if under else low), high.ceiling - edge)


def _worst(costs: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The largest share of a limit that these costs use; 1 is the limit."""
    return max(costs[kind] / limit for kind, limit in limits.items())


def _miss(used: float) -> float:
    """How far a network is from `AIM`; a network that meets the limits is always nearer than one that does not."""
    return abs(used - AIM) if used <= 1 else used
