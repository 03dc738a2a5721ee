"""Budgets of latency and memory: what only the edited network shows is measured on it, and the plan corrected."""

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
from simprune.trace.timing import Timer, alternate, batch_of
from simprune.tune.latency_table import Timing, latency_table

ROUNDS = 10  # networks that are measured at most; half as many each time that channels are given back
LOOKS = 3  # ceilings that are tried at most for each of these: different ones may lead to the same selection
CLOSE = 0.95  # of the budget: near enough
AIM = (1 + CLOSE) / 2
INSIDE = 0.1  # of what is left between two ceilings: how near to either the next one may lie
FINE = 2e-3  # share of the cost that no longer matters
PARTS = 512  # of the channels found, that may be given back
TURNS = 5, 31  # of timing original and candidate: that many at least, and at most where the answer is near a limit

Choose = Callable[[Search], tuple[Space, Selection]]
Draft = Callable[[Space, Selection], Plan]
Timings = dict[tuple[str, ...], Timing]  # by the names of the structures
Found = tuple[Space, Selection, dict[str, float]]  # a selection, and what was measured on the network without it


@dataclass(frozen=True)
class Point:
    """A ceiling, and how much of the limits the network it led to used, measured: 1 is all."""

    ceiling: float
    used: float


@dataclass
class Bench:
    """The network to measure on, and what of it was measured already."""

    network: Network
    example: Example
    timer: Timer
    draft: Draft
    whole: dict[str, float] = field(default_factory=dict)
    timings: Timings = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, batch_size: int | None, timer: Timer, draft: Draft, timings: Timings) -> "Bench":
        """With the network's example as one batch of `batch_size` inputs; `timings` is added to."""
        return cls(network, batch_of(network.example, batch_size), timer, draft, timings=timings)

    def timing(self, space: Space) -> Timing:
        """What the structures of a space save in seconds; timed once."""
        names = tuple(entry.name for entry in (*space.blocks, *(menu.entry for menu in space.menus)))
        if names not in self.timings:
            self.timings[names] = latency_table(
                space, self.network.model, self.example, lambda selection: self.edited(space, selection), self.timer
            )
        return self.timings[names]

    def edited(self, space: Space, selection: Selection) -> nn.Module:
        return apply(self.draft(space, selection), self.network)

    def original(self, kind: str) -> float:
        """Seconds of the original, or peak bytes per input."""
        if kind not in self.whole:
            model, example = self.network.model, self.example
            self.whole[kind] = peak_memory(model, example) if kind == "memory" else self.timer(model, *example)
        return self.whole[kind]

    def measure(self, space: Space, selection: Selection, limits: Mapping[str, float]) -> dict[str, float]:
        """The limited kinds of cost of the network without what is chosen."""
        if not selection.levels.any() and not selection.blocks.any():
            return {kind: self.original(kind) for kind in limits}
        small, found = self.edited(space, selection), {}
        if "memory" in limits:
            found["memory"] = peak_memory(small, self.example)
        if "latency" in limits:
            found["latency"] = self.seconds(small, limits["latency"])
        return found

    def seconds(self, small: nn.Module, limit: float) -> float:
        """By the median of the ratios to the original; more turns as long as it is not clear on which side it lies."""
        whole, ratios = self.original("latency"), []
        least, most = TURNS
        for before, after in islice(alternate(self.network.model, small, self.example, self.timer), most):
            ratios = sorted([*ratios, whole * after / before])
            outside = max(int((len(ratios) - 2 * len(ratios) ** 0.5) / 2), 0)
            low, high = ratios[outside], ratios[-1 - outside]  # 95 % interval of the median, by order statistics
            if len(ratios) >= least and (high < CLOSE * limit or low > limit or CLOSE * limit <= low <= high <= limit):
                break
        return median(ratios)


def meet(search: Search, budget: Budget, choose: Choose, bench: Bench) -> Found:
    """A selection whose network, measured, meets the budget; the furthest that one can go when none does.

    A limit on latency: the planner sees a table of what each structure saves, at widths that are worth having; the
    limit it gets is corrected by what is measured, until that is at most 5 % below the budget; what is left goes to
    channels, first at these widths, then at all. A limit on memory: the largest share of the macs is searched whose
    network meets it, because the peak of the whole is no sum over structures.
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
    found = _corrected(coarse, kind, limits, choose, bench, ROUNDS)
    for widths in (coarse, search) if coarse is not search else (search,):
        if found[1].levels.any() and _worst(found[2], limits) < CLOSE:
            found = _widened(widths, found)
            found = _corrected(widths, kind, limits, partial(_giving_back, *found[:2]), bench, ROUNDS // 2, found)
    if len(limits) > 1 and _worst(found[2], limits) > 1:
        found = _corrected(search, "macs", limits, choose, bench, ROUNDS)
    return found


def not_measured(budget: Budget, before: Mapping[str, float], after: Mapping[str, float]) -> ValueError:
    """The error for a budget of latency or memory that no measured network met.

    Args:
        budget: that was not met.
        before: what the original takes, in seconds or bytes, by kind of cost.
        after: what the nearest network takes.
    """
    shown = {"latency": lambda value: f"{1e3 * value:.3g} ms", "memory": lambda value: f"{value:,.0f} bytes"}
    reached = ", ".join(f"{kind} {shown[kind](after[kind])} of {shown[kind](before[kind])}" for kind in after)
    return ValueError(f"budget: {budget} was not reached by any network that was measured; the nearest has {reached}")


def _widened(search: Search, found: Found) -> Found:
    """The same selection where all levels of the search are there."""
    few, selection, costs = found
    space = search.space.ordered({menu.entry.name: menu.order for menu in few.menus}, search.constraints)
    counts = [menu.counts[level] for menu, level in zip(few.menus, selection.levels, strict=True)]
    levels = [menu.counts.index(count) for menu, count in zip(space.menus, counts, strict=True)]
    return space, Selection(np.array(levels, np.intp), selection.blocks), costs


def _giving_back(space: Space, found: Selection, search: Search) -> tuple[Space, Selection]:
    """The same blocks, and of every group the same share of the levels found, as large as the ceilings ask for.

    From one ceiling to the next a planner may put a block, or a step of many channels, in the place of a few channels;
    what that leaves of the budget goes to the channels.
    """
    queue = [
        (level / most, Step(item, level)) for item, most in enumerate(found.levels) for level in range(1, most + 1)
    ]
    levels, _ = space.along(ranked(queue))
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, PARTS).astype(int))]
    return space, best(search.within(space), levels, np.repeat(found.blocks[None], len(levels), 0))


def _corrected(
    search: Search,
    kind: str,
    limits: Mapping[str, float],
    choose: Choose,
    bench: Bench,
    rounds: int,
    start: Found | None = None,
) -> Found:
    """Move the ceiling of one kind of cost until what is measured is met from below, and nearly.

    `rounds`: networks that are measured at most. `start`: a selection that meets the limits, to begin with.
    """
    column = search.space.kinds.index(kind)
    whole, least = (float(search.space.cost(each)[column]) for each in (search.space.nothing, everything(search.space)))
    top = min(search.ceilings.get(kind, whole), whole)
    over = [Point(top, _worst({each: bench.original(each) for each in limits}, limits))]
    under: Point | None = None
    seen: dict[bytes, Found] = {}
    ceiling = top * min(AIM / over[0].used, 1.0) if over[0].used > 1 else top
    if start is not None:
        seen[_key(start[1])] = start
        under = Point(float(start[0].cost(start[1])[column]), _worst(start[2], limits))
        ceiling = _next(over, under, least, halve=False)
    for look in range(LOOKS * rounds):
        space, selection = choose(replace(search, ceilings=search.ceilings | {kind: ceiling}))
        key = _key(selection)
        if key not in seen and len(seen) == rounds + (start is not None):
            break
        seen[key] = seen.get(key) or (space, selection, bench.measure(space, selection, limits))
        used, reached = _worst(seen[key][2], limits), float(space.cost(selection)[column])
        if CLOSE <= used <= 1 or (used <= 1 and ceiling >= top):
            break  # near enough, or nothing has to go
        if used <= 1:
            under = Point(ceiling, used)
        else:
            over.append(Point(min(ceiling, reached), used))
            if reached > ceiling + FINE * abs(ceiling):
                break  # as far as one can go
        if over[-1].ceiling - (under.ceiling if under else least) <= FINE * top:
            break  # the steps are too coarse
        ceiling = _next(over, under, least, halve=look % 3 == 2)
    return min(seen.values(), key=lambda found: _miss(_worst(found[2], limits)))


def _key(selection: Selection) -> bytes:
    return selection.levels.tobytes() + selection.blocks.tobytes()


def _next(over: Sequence[Point], under: Point | None, least: float, halve: bool) -> float:
    """Regula falsi between the loosest ceiling that met the limits and the tightest looser one that did not; as long as
    none did, the secant through the last two."""
    high, other = over[-1], under or over[-2]
    low = under.ceiling if under else least
    slope = (high.used - other.used) / (high.ceiling - other.ceiling) if high.ceiling != other.ceiling else 0.0
    wanted = high.ceiling - (high.used - AIM) / slope if slope > 0 and not halve else (low + high.ceiling) / 2
    edge = INSIDE * (high.ceiling - low)
    return min(max(wanted, low + edge if under else low), high.ceiling - edge)


def _worst(costs: Mapping[str, float], limits: Mapping[str, float]) -> float:
    return max(costs[kind] / limit for kind, limit in limits.items())


def _miss(used: float) -> float:
    """How far a network is from where it should be; whatever meets the limits before whatever does not."""
    return abs(used - AIM) if used <= 1 else used
