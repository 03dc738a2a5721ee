"""From redundancy and a budget to a plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from simprune.core.plan import Edit, Method, Plan
from simprune.core.redundancy import Redundancy
from simprune.core.registry import bound
from simprune.planners.budget import Amount, Budget
from simprune.planners.constraints import Constraints
from simprune.planners.refusal import unreachable
from simprune.planners.search import Search
from simprune.planners.space import Selection, Space
from simprune.settings import Planner
from simprune.trace.network import Network
from simprune.trace.timing import Timer, clock
from simprune.tune.finalists import try_plans
from simprune.tune.holdout_trial import HoldoutTrial
from simprune.tune.measured import Bench, Choose, Timings, meet, not_measured


def plan(
    redundancy: Redundancy,
    budget: Mapping[str, Amount | None],
    planner: str | Mapping[str, Any] | Planner = "greedy",
    seed: int = 0,
    *,
    network: Network | None = None,
    calibration: Iterable | None = None,
    repair: Method = "least_squares",
    timer: Timer = clock,
    **options: Any,
) -> Plan:
    """Choose what to remove so that at most `budget` of the original's cost is kept.

    Args:
        redundancy: of the original's structures.
        budget: shares in (0, 1] of the original, or amounts such as "60M", of macs, params, bytes, memory, latency (see
            `simprune.planners.budget`).
        planner: what chooses, and what must stay: a name, or a mapping with `name`, constraints and options. With
            `finalists`, that many plans at most, from no blocks to blocks alone, are edited, repaired and measured on
            held-out inputs, and the best is returned (see `simprune.tune.finalists`); each costs one edit and one
            repair on up to 1,024 inputs.
        seed: for planners that draw at random.
        network: the original, on which memory and latency are measured and finalists are tried.
        calibration: batches to repair and try finalists on.
        repair: the repair method of finalists.
        timer: (module, args, kwargs) -> seconds of one call.
        options: constraints and options of a planner that is given by name.

    Returns:
        The plan. The same arguments give the same plan, unless latency is limited: clocks differ.

    Raises:
        ValueError: when the budget is out of reach; the message has the least cost that can be reached, and what stays.
    """
    planner = Planner.named(planner, options)
    own = {key: value for key, value in planner.options.items() if value is not None}
    choose = bound("planner", {"name": planner.name, **own})
    constraints = Constraints(planner.protect, planner.round_to, planner.min_width, planner.max_share)
    blocks, finalists = planner.blocks, planner.finalists
    name, size = str(planner.name), planner.batch_size
    request = _Request(budget, name, choose, constraints, seed, network, size, timer, own)
    if not finalists:
        return request.plan(redundancy, blocks)
    if network is None or calibration is None:
        raise ValueError("finalists are tried on the network: give model=... and calibration=...")
    holdout = HoldoutTrial.of(network, calibration, repair)
    return try_plans(redundancy, request.plan, holdout.errors, finalists)


@dataclass(frozen=True)
class _Request:
    """What is asked of a plan, for any redundancy: the arguments of `plan`, read."""

    budget: Mapping[str, Amount | None]
    planner: str
    choose: Choose
    constraints: Constraints
    seed: int
    network: Network | None
    batch_size: int | None
    timer: Timer
    options: Mapping[str, Any]
    timings: Timings = field(default_factory=dict)

    def plan(self, redundancy: Redundancy, blocks: int | None = None) -> Plan:
        """The plan for this redundancy; `blocks`: the exact number of blocks to remove, None for any."""
        limits = _limits(self.budget, self.options.get("threshold"))
        whole = redundancy.costs.total()
        counted = {} if limits is None else limits.counted.limits
        ceilings = {kind: limit.of(getattr(whole, kind)) for kind, limit in counted.items()}
        search = Search(Space.of(redundancy, self.constraints), ceilings, self.constraints, self.seed, blocks)

        def draft(space: Space, selection: Selection) -> Plan:
            damage = float(space.damage(selection.levels[None], selection.blocks[None])[0])
            return Plan(
                edits=_edits(space, selection),
                fingerprint=redundancy.fingerprint,
                inputs=redundancy.inputs,
                budget={} if limits is None else limits.to_dict(),
                planner=self._described(redundancy.measure, blocks),
                original=whole.to_dict(),
                expected={**space.exact(selection).to_dict(), "damage": _short(damage)},
            )

        if limits is None or not limits.measured.limits:
            space, selection = self.choose(search)
            before, after = {}, {}
        else:
            if self.network is None:
                raise ValueError(f"budget: {' and '.join(limits.measured.limits)} can only be measured: give model=...")
            bench = Bench.of(self.network, self.batch_size, self.timer, draft, self.timings)
            space, selection, after = meet(search, limits, self.choose, bench)
            before = {kind: bench.original(kind) for kind in after}
            if any(after[kind] > limit.of(before[kind]) for kind, limit in limits.measured.limits.items()):
                raise not_measured(limits, before, after)
        expected = space.exact(selection)
        if blocks is not None and len(space.removed(selection)[0]) != blocks:
            raise ValueError(f"planner: {self.planner} found no plan that removes {blocks} blocks and meets the budget")
        if limits is not None and not limits.met(expected, whole):
            raise unreachable(redundancy, limits, expected, space, self.planner)
        counted_plan = draft(space, selection)
        original = {**counted_plan.original, **_figures(before)}
        return replace(counted_plan, original=original, expected={**counted_plan.expected, **_figures(after)})

    def _described(self, measure: str, blocks: int | None) -> dict[str, Any]:
        """How the plan is made, for the plan file; arguments that have their default are left out."""
        default = Constraints().to_dict()
        changed = {key: value for key, value in self.constraints.to_dict().items() if value != default[key]}
        optional = {"blocks": blocks, "batch_size": self.batch_size}
        changed |= {key: value for key, value in optional.items() if value is not None}
        return {"name": self.planner, "seed": self.seed, "measure": measure, **changed, **self.options}


def _figures(measured: Mapping[str, float]) -> dict[str, float]:
    """Measured costs in the units of plan files: bytes per input, and milliseconds."""
    figures: dict[str, float] = {"memory": int(measured["memory"])} if "memory" in measured else {}
    return figures | ({"latency_ms": _short(1e3 * measured["latency"])} if "latency" in measured else {})


def _limits(budget: Mapping[str, Amount | None], threshold: Any) -> Budget | None:
    """The budget; None where a threshold decides how much is removed.

    Raises:
        ValueError: for both, or a budget that cannot be read.
    """
    if threshold is None:
        return Budget.of(budget)
    if any(limit is not None for limit in budget.values()):
        raise ValueError("planner threshold: give either a budget or a threshold, not both")
    return None


def _edits(space: Space, selection: Selection) -> tuple[Edit, ...]:
    """The edits of a selection with their reasons: blocks first, then groups."""
    blocks, groups = space.removed(selection)
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
            f"{menu.entry.why(menu.gone(level))}; {len(menu.gone(level))} of {menu.entry.group.size} go",
            damage=_short(menu.damage[level]),
        )
        for menu, level in groups
    ]
    return tuple(edits)


def _short(value: float) -> float:
    """Four significant digits: an expectation is worth no more, and files agree to the last digit."""
    return float(f"{value:.4g}")
