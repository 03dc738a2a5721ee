"""From redundancy and a budget to a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from simprune.latency import Timer, clock
from simprune.planning.budget import Amount, Budget
from simprune.planning.choosers import check_options, chooser
from simprune.planning.constraints import Constraints
from simprune.planning.measured import Bench, meet
from simprune.planning.plan import Edit, Plan
from simprune.planning.refusal import not_measured, unreachable
from simprune.planning.search import Search
from simprune.planning.space import Choice, Space
from simprune.redundancy import ChannelRedundancy, Redundancy

CONSTRAINTS = {"protect": [], "round_to": 1, "min_width": 1, "max_share": 1.0}  # what holds for every planner


def plan(
    redundancy: Redundancy,
    budget: Mapping[str, Amount | None],
    planner: str = "greedy",
    seed: int = 0,
    *,
    protect: Sequence[str] = (),
    round_to: int = 1,
    min_width: int = 1,
    max_share: float = 1.0,
    model: nn.Module | None = None,
    batch_size: int | None = None,
    timer: Timer = clock,
    **options: Any,
) -> Plan:
    """Choose what to remove so that at most `budget` of the original's cost is kept.

    `budget`: shares in (0, 1] of the original, or amounts such as "60M", of macs, params, bytes, memory, latency (see
    `simprune.planning.budget`). `protect`, `round_to`, `min_width`, `max_share`: what must stay (see
    `simprune.planning.constraints`). Further options are the planner's own. Memory and latency need the `model`, on
    which they are measured; latency is of `batch_size` inputs (None: as many as the plan's example has), by `timer`
    (module, args, kwargs) -> seconds. The same arguments give the same plan, unless latency is limited: clocks differ.
    Raises ValueError when the budget cannot be reached (the message says how far one can go) and KeyError for an
    unknown planner.
    """
    choose = chooser(planner)
    check_options(planner, options)
    constraints = Constraints(protect, round_to, min_width, max_share)
    limits = _limits(budget, options.get("threshold"))
    whole = redundancy.costs.total()
    counted = {} if limits is None else limits.counted.limits
    ceilings = {kind: limit.of(getattr(whole, kind)) for kind, limit in counted.items()}
    search = Search(Space.of(redundancy, constraints), ceilings, constraints, seed)
    given = {"protect": list(constraints.protect), "round_to": round_to, "min_width": min_width, "max_share": max_share}
    kept = {key: value for key, value in given.items() if value != CONSTRAINTS[key]}
    kept |= {} if batch_size is None else {"batch_size": batch_size}

    def draft(space: Space, choice: Choice) -> Plan:
        damage = float(space.damage(choice.levels[None], choice.blocks[None])[0])
        return Plan(
            edits=_edits(space, choice),
            fingerprint=redundancy.fingerprint,
            inputs=redundancy.inputs,
            budget={} if limits is None else limits.to_dict(),
            planner={"name": planner, "seed": seed, "measure": redundancy.measure, **kept, **options},
            original=whole.to_dict(),
            expected={**space.exact(choice).to_dict(), "damage": _short(damage)},
        )

    if limits is None or not limits.measured.limits:
        space, choice = choose(search, **options)
        before, after = {}, {}
    else:
        if model is None:
            raise ValueError(f"budget: {' and '.join(limits.measured.limits)} can only be measured: give model=...")
        bench = Bench.of(model, redundancy.inputs, batch_size, timer, draft)
        space, choice, after = meet(search, limits, partial(choose, **options), bench)
        before = {kind: bench.original(kind) for kind in after}
        if any(after[kind] > limit.of(before[kind]) for kind, limit in limits.measured.limits.items()):
            raise not_measured(limits, before, after)
    expected = space.exact(choice)
    if limits is not None and not limits.met(expected, whole):
        raise unreachable(redundancy, limits, expected, space, planner)
    made = draft(space, choice)
    return replace(made, original={**made.original, **_figures(before)}, expected={**made.expected, **_figures(after)})


def _figures(measured: Mapping[str, float]) -> dict[str, float]:
    """Measured costs as a plan has them: bytes per input, milliseconds."""
    found: dict[str, float] = {"memory": int(measured["memory"])} if "memory" in measured else {}
    return found | ({"latency_ms": _short(1e3 * measured["latency"])} if "latency" in measured else {})


def _limits(budget: Mapping[str, Amount | None], threshold: Any) -> Budget | None:
    """The budget; None where a given threshold says how much goes."""
    if threshold is None:
        return Budget.of(budget)
    if any(limit is not None for limit in budget.values()):
        raise ValueError("planner threshold: give either a budget or a threshold, not both")
    return None


def _edits(space: Space, choice: Choice) -> tuple[Edit, ...]:
    blocks, groups = space.removed(choice)
    edits = [
        Edit(
            "block",
            entry.name,
            reason=f"{entry.why(space.redundancy.measure)}; {entry.share:.1%} of the macs",
            replace=entry.block.replace,  # pyright: ignore[reportArgumentType]
            damage=_short(entry.damage),
        )
        for entry in blocks
    ]
    edits += [
        Edit(
            menu.entry.group.kind,
            menu.entry.name,
            menu.entry.group.expand(menu.gone(level)),
            menu.entry.group.width,
            _why(menu.entry, menu.gone(level)),
            damage=_short(menu.damage[level]),
        )
        for menu, level in groups
    ]
    return tuple(edits)


def _short(value: float) -> float:
    """Four digits: as much as an expectation is worth, and the same in every file."""
    return float(f"{value:.4g}")


WHY = {
    "predictability": "the others predict {least:.1%} or more (mean {mean:.1%}) of the variance of each",
    "second_order": "the others, readers refitted, make up for {least:.1%} or more (mean {mean:.1%}) of each",
}


def _why(entry: ChannelRedundancy, gone: Sequence[int]) -> str:
    made_up = [entry.redundancy[unit] for unit in gone]
    wording = WHY.get(entry.score, "redundancy {least:.3f} or more (mean {mean:.3f}) by " + entry.score)
    said = wording.format(least=min(made_up), mean=sum(made_up) / len(made_up))
    return f"{said}; {len(gone)} of {entry.group.size} go"
