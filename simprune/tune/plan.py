"""From redundancy and a budget to a plan."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from simprune.core.plain import short
from simprune.core.plan import Edit, Method, Plan
from simprune.core.redundancy import Redundancy
from simprune.core.registry import bound
from simprune.planners.alike import Alike, united
from simprune.planners.budget import MEASURED, Amount, Budget
from simprune.planners.constraints import Constraints
from simprune.planners.refusal import unreachable
from simprune.planners.search import Search
from simprune.planners.space import Selection, Space
from simprune.planners.surplus import without_surplus
from simprune.settings import Planner
from simprune.trace.network import Network
from simprune.trace.timing import Timer, batch_of, clock, default_size
from simprune.tune.finalists import HoldoutTrial, try_plans
from simprune.tune.loading import loadable, whole_layers
from simprune.tune.measured import Bench, Timings, meet, not_measured

EQUALLY = "as many as of its kind in every layer"  # why, for a loader of equal layers
ANY_LOADER = "damage_any_loader"  # the damage that would be expected if widths need not be equal


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
    """Choose what to remove so that at most `budget` of the original's cost remains.

    Args:
        redundancy: of the original's structures.
        budget: shares in (0, 1] of the original, or amounts such as "60M", of macs, params, bytes, memory, latency (see
            `simprune.planners.budget`).
        planner: what chooses, and what must stay: a name, or a mapping with `name`, constraints and options. With
            `finalists`, that many plans at most, from no blocks to blocks alone, or where only blocks can go runs of
            them, are edited, repaired and measured on held-out inputs, and the best is returned (see
            `simprune.tune.finalists`); a plan costs one edit and one repair on up to 1,024 inputs.
        seed: for planners that draw at random.
        network: the original, on which memory and latency are measured and finalists are tried.
        calibration: batches to repair and try finalists on.
        repair: the repair method of finalists.
        timer: (module, args, kwargs) -> seconds of one call.
        options: further constraints and options of the planner.

    Returns:
        The plan. The same arguments give the same plan, unless latency is limited: clocks differ.

    Raises:
        ValueError: when the budget is out of reach; the message has the least cost that can be reached, and what stays.
    """
    planner = Planner.named(planner, options)
    request = _Request(budget, planner, seed, network, timer)
    if not planner.finalists:
        return request.plan(redundancy, planner.blocks)
    if network is None or calibration is None:
        raise ValueError("finalists are tried on the network: give model=... and calibration=...")
    holdout = HoldoutTrial.of(network, calibration, repair)
    return try_plans(redundancy, request.plan, holdout.losses, planner.finalists)


@dataclass(frozen=True)
class _Request:
    """The arguments of `plan` that hold for any redundancy; `timings`: of structures, for all plans of the request."""

    budget: Mapping[str, Amount | None]
    planner: Planner
    seed: int
    network: Network | None
    timer: Timer
    timings: Timings = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The planner's own options that have a value."""
        return {key: value for key, value in self.planner.options.items() if value is not None}

    def plan(self, redundancy: Redundancy, blocks: int | None = None) -> Plan:
        """The plan for this redundancy; `blocks`: the exact number of blocks to remove, None for any."""
        if self.planner.loader == "any":
            return self._plan(redundancy, blocks, {})
        if self.network is None:
            raise ValueError("planner.loader transformers: what its configuration can state is tried: give model=...")
        if kinds := [kind for kind in self.budget if kind in MEASURED and self.budget[kind] is not None]:
            raise ValueError(f"planner.loader transformers: {kinds[0]} is no budget for it; give macs, params or bytes")
        sets = loadable(redundancy, self.network)
        together, alike = united(replace(redundancy, blocks=whole_layers(redundancy.blocks)), sets)
        made = self._plan(together, blocks, alike)
        free = self._plan(redundancy, blocks, {}).expected["damage"]
        return replace(made, expected={**made.expected, ANY_LOADER: free})

    def _plan(self, redundancy: Redundancy, blocks: int | None, alike: Mapping[str, Alike]) -> Plan:
        """The plan, in which some groups may stand for several."""
        planned = bound("planner", {"name": self.planner.name, **self.options})
        constraints = Constraints(**{entry.name: getattr(self.planner, entry.name) for entry in fields(Constraints)})
        limits = _limits(self.budget, self.options.get("threshold"))
        whole = redundancy.costs.total()
        default = Constraints().to_dict()
        described = {"name": self.planner.name, "seed": self.seed, "measure": redundancy.measure}
        described |= {key: value for key, value in constraints.to_dict().items() if value != default[key]}
        optional = {"blocks": blocks, "batch_size": self.planner.batch_size}
        described |= {key: value for key, value in optional.items() if value is not None} | self.options
        ceilings = {kind: limit.of(getattr(whole, kind)) for kind, limit in limits.counted.limits.items()}
        search = Search(Space.of(redundancy, constraints), ceilings, constraints, self.seed, blocks)

        def draft(space: Space, selection: Selection) -> Plan:
            damage = float(space.damage(selection.levels[None], selection.blocks[None])[0])
            return Plan(
                edits=_edits(space, selection, alike),
                fingerprint=redundancy.fingerprint,
                inputs=redundancy.inputs,
                budget=limits.to_dict(),
                planner=described,
                original=whole.to_dict(),
                expected={**space.exact(selection).to_dict(), "damage": short(damage)},
            )

        def choose(search: Search) -> tuple[Space, Selection]:
            space, selection = planned(search)
            return without_surplus(search.within(space), selection)

        before, after = {}, {}
        if not limits.measured.limits:
            space, selection = choose(search)
        elif self.network is None:
            raise ValueError(f"budget: {' and '.join(limits.measured.limits)} can only be measured: give model=...")
        else:
            size = self.planner.batch_size or default_size(self.network.costs.total().macs)
            example = batch_of(self.network.example, size)
            bench = Bench(self.network, example, self.timer, draft, timings=self.timings)
            space, selection, after = meet(search, limits, choose, bench)
            before = {kind: bench.original(kind) for kind in after}
            if any(after[kind] > limit.of(before[kind]) for kind, limit in limits.measured.limits.items()):
                raise not_measured(limits, before, after)
        expected = space.exact(selection)
        if blocks is not None and len(space.removed(selection)[0]) != blocks:
            name = self.planner.name
            raise ValueError(f"planner: {name} found no plan that removes {blocks} blocks and meets the budget")
        if not limits.met(expected, whole):
            raise unreachable(redundancy, limits, expected, space, str(self.planner.name))
        counted_plan = draft(space, selection)
        original = {**counted_plan.original, **_figures(before)}
        return replace(counted_plan, original=original, expected={**counted_plan.expected, **_figures(after)})


def _figures(measured: Mapping[str, float]) -> dict[str, float]:
    """Measured costs in the units of plan files: bytes per input, and milliseconds."""
    figures: dict[str, float] = {"memory": int(measured["memory"])} if "memory" in measured else {}
    return figures | ({"latency_ms": short(1e3 * measured["latency"])} if "latency" in measured else {})


def _limits(budget: Mapping[str, Amount | None], threshold: Any) -> Budget:
    """The budget; one without limits where a threshold decides how much is removed.

    Raises:
        ValueError: for both, or a budget that cannot be read.
    """
    if threshold is None:
        return Budget.of(budget)
    if any(limit is not None for limit in budget.values()):
        raise ValueError("planner threshold: give either a budget or a threshold, not both")
    return Budget({})


def _edits(space: Space, selection: Selection, alike: Mapping[str, Alike]) -> tuple[Edit, ...]:
    """The edits of a selection with their reasons: blocks first, then groups, or the groups that one stands for."""
    blocks, groups = space.removed(selection)
    edits = []
    for entry in blocks:
        reason = f"{entry.why(space.redundancy.measure)}; {entry.share:.1%} of the macs"
        stand_in: Any = entry.block.replace
        edits.append(Edit("block", entry.name, reason=reason, replace=stand_in, damage=short(entry.damage)))
    for menu, level in groups:
        group, gone = menu.entry.group, menu.gone(level)
        if group.name in alike:
            edits += alike[group.name].edits(gone, EQUALLY, [entry.name for entry in blocks])
            continue
        reason = f"{menu.entry.why(gone)}; {len(gone)} of {group.size} go"
        damage = short(menu.damage[level])
        edits.append(Edit(group.kind, menu.entry.name, group.expand(gone), group.width, reason, damage=damage))
    return tuple(edits)
