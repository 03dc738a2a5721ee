"""Budgets of latency and memory: what only the edited network shows is measured on it, and the plan corrected."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from simprune.batches import device_of
from simprune.cost import Example
from simprune.example import from_description
from simprune.latency import Timer, batch_of, latency_table
from simprune.memory import peak_memory
from simprune.planning.budget import Budget
from simprune.planning.plan import Plan
from simprune.planning.search import Search
from simprune.planning.space import Choice, Space
from simprune.surgery import apply

ROUNDS = 8
CLOSE = 0.95  # of the budget: near enough
TURNS = 9  # original and candidate are timed in turns, so that a machine that slows down slows both

Choose = Callable[[Search], tuple[Space, Choice]]
Draft = Callable[[Space, Choice], Plan]
Found = tuple[Space, Choice, dict[str, float]]  # a choice, and what was measured on the network without it


@dataclass
class Bench:
    """The network to measure on, and what of it was measured already."""

    model: nn.Module
    example: Example
    timer: Timer
    draft: Draft
    whole: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping, batch_size: int | None, timer: Timer, draft: Draft) -> "Bench":
        """With the example that a plan describes, as one batch of `batch_size` inputs."""
        return cls(model, batch_of(from_description(inputs, device_of(model)), batch_size), timer, draft)

    def edited(self, space: Space, choice: Choice) -> nn.Module:
        return apply(self.draft(space, choice), self.model)

    def original(self, kind: str) -> float:
        """Seconds of the original, or peak bytes per input."""
        if kind not in self.whole:
            model, example = self.model, self.example
            self.whole[kind] = peak_memory(model, example) if kind == "memory" else self.timer(model, *example)
        return self.whole[kind]

    def measure(self, space: Space, choice: Choice, kinds: Budget) -> dict[str, float]:
        """The measured kinds of cost of the network without what is chosen."""
        small, found = self.edited(space, choice), {}
        if "memory" in kinds.limits:
            found["memory"] = peak_memory(small, self.example)
        if "latency" in kinds.limits:
            times = [(self.timer(self.model, *self.example), self.timer(small, *self.example)) for _ in range(TURNS)]
            ratio = sorted(after / before for before, after in times)[TURNS // 2]
            found["latency"] = ratio * self.original("latency")
        return found


def meet(search: Search, budget: Budget, choose: Choose, bench: Bench) -> Found:
    """A choice whose network, measured, meets the budget; the furthest that one can go when none does.

    A limit on latency: the chooser sees a table of what each structure saves; the limit it gets is corrected by what is
    measured, until that is at most 5 % below the budget. A limit on memory: the largest share of the macs is searched
    whose network meets it, because the peak of the whole is no sum over structures.
    """
    limits = {kind: limit.of(bench.original(kind)) for kind, limit in budget.measured.limits.items()}
    kind = "latency" if "latency" in limits else "macs"
    if kind == "latency":
        table = latency_table(
            search.space, bench.model, bench.example, lambda choice: bench.edited(search.space, choice), bench.timer
        )
        bench.whole["latency"] = table.whole
        limits["latency"] = budget.limits["latency"].of(table.whole)
        search = replace(search, space=replace(search.space, extra={"latency": table}))
    found = _corrected(search, kind, limits, budget.measured, choose, bench)
    if kind == "latency" and "memory" in limits and _worst(found[2], limits) > 1:
        found = _corrected(search, "macs", limits, budget.measured, choose, bench)
    return found


def _corrected(
    search: Search, kind: str, limits: Mapping[str, float], kinds: Budget, choose: Choose, bench: Bench
) -> Found:
    """Move the ceiling of one kind of cost until what is measured is met from below, and nearly."""
    column = search.space.kinds.index(kind)
    top = min(search.ceilings.get(kind, float("inf")), float(search.space.cost(search.space.nothing)[column]))
    low, high = 0.0, top  # the ceiling that is sure to be met, and the first to try
    ceiling = min(limits.get(kind, top), top)
    found: Found | None = None
    last: Choice | None = None
    for _ in range(ROUNDS):
        space, choice = choose(replace(search, ceilings=search.ceilings | {kind: ceiling}))
        if last is not None and (last.levels == choice.levels).all() and (last.blocks == choice.blocks).all():
            break  # another limit holds, or the steps are too coarse
        last = choice
        costs = bench.measure(space, choice, kinds)
        if _worst(costs, limits) <= 1:  # once more: of several rounds, the one that chance favoured would win
            costs = {kind: max(cost, costs[kind]) for kind, cost in bench.measure(space, choice, kinds).items()}
        worst = _worst(costs, limits)
        reached = float(space.cost(choice)[column])
        found = _better(found, (space, choice, costs), limits)
        if worst <= 1:
            if worst >= CLOSE or ceiling >= top:
                break
            low = ceiling
        else:
            high = min(ceiling, reached)
            if reached > ceiling * (1 + 1e-9):  # as far as one can go
                break
        wanted = reached / worst * (0.5 + 0.5 * CLOSE)
        inside = low + 0.05 * (high - low) < wanted < high - 0.05 * (high - low)
        ceiling = wanted if inside else (low + high) / 2
    assert found is not None
    return found


def _better(found: Found | None, other: Found, limits: Mapping[str, float]) -> Found:
    """Of two, the one nearest below the limits; if both are above, the nearer."""
    if found is None:
        return other
    one, two = _worst(found[2], limits), _worst(other[2], limits)
    return other if (one > 1 and two < one) or one < two <= 1 else found


def _worst(costs: Mapping[str, float], limits: Mapping[str, float]) -> float:
    return max(costs[kind] / limit for kind, limit in limits.items())
