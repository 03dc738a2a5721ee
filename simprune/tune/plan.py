"""From redundancy and a budget to a plan."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simprune.core.plan import Edit, Method, Plan
from simprune.core.redundancy import ChannelRedundancy, Redundancy
from simprune.core.registry import bound
from simprune.planners.budget import Amount, Budget
from simprune.planners.constraints import Constraints
from simprune.planners.refusal import not_measured, unreachable
from simprune.planners.search import Search
from simprune.planners.space import Selection, Space
from simprune.trace.network import Network
from simprune.trace.timing import Timer, clock
from simprune.tune.finalists import try_plans
from simprune.tune.holdout_trial import HoldoutTrial
from simprune.tune.measured import Bench, Choose, Timings, meet

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
    blocks: int | None = None,
    finalists: int = 0,
    network: Network | None = None,
    calibration: Iterable | None = None,
    repair: Method = "least_squares",
    batch_size: int | None = None,
    timer: Timer = clock,
    **options: Any,
) -> Plan:
    """Choose what to remove so that at most `budget` of the original's cost is kept.

    `budget`: shares in (0, 1] of the original, or amounts such as "60M", of macs, params, bytes, memory, latency (see
    `simprune.planners.budget`). `protect`, `round_to`, `min_width`, `max_share`: what must stay (see
    `simprune.planners.constraints`). `blocks`: how many blocks go, exactly; None leaves that to the planner.
    `finalists`: how many plans, from no blocks to blocks alone, are tried at most: edited, repaired by `repair` on
    `calibration`, and measured on inputs held out of it; the best is returned (see
    `simprune.tune.finalists`); 0 for none. Further options are the planner's own. Memory and latency need the
    `network` to be measured; latency is of `batch_size` inputs (None: as many as the plan's example has), by
    `timer` (module, args, kwargs) -> seconds. The same arguments give the same plan, unless latency is limited: clocks
    differ. Cost of a finalist: one edit and one repair, on up to 1,024 inputs. Raises ValueError when the budget is out
    of reach (the message says how far one can go) and KeyError for an unknown planner.
    """
    choose = bound("planner", {"name": planner, **options})
    constraints = Constraints(protect, round_to, min_width, max_share)
    check_numbers(blocks, finalists)
    request = _Request(budget, planner, choose, constraints, seed, network, batch_size, timer, options)
    if not finalists:
        return request.plan(redundancy, blocks)
    if network is None or calibration is None:
        raise ValueError("finalists are tried on the network: give model=... and calibration=...")
    holdout = HoldoutTrial.of(network, calibration, repair)
    return try_plans(redundancy, request.plan, holdout.errors, finalists)


def check_numbers(blocks: int | None, finalists: int) -> None:
    """Raise ValueError for numbers that `plan` does not take."""
    for name, value, least in (("blocks", 0 if blocks is None else blocks, 0), ("finalists", finalists or 2, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"planner: {name} must be a whole number of at least {least}; got {value!r}")
    if finalists and blocks is not None:
        raise ValueError("planner: finalists differ in their number of blocks: give either finalists or blocks")


@dataclass(frozen=True)
class _Request:
    """What is asked of a plan, whatever the redundancy."""

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
                planner=self._said(redundancy.measure, blocks),
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
        made = draft(space, selection)
        return replace(
            made, original={**made.original, **_figures(before)}, expected={**made.expected, **_figures(after)}
        )

    def _said(self, measure: str, blocks: int | None) -> dict[str, Any]:
        """What the plan file keeps of how it was made; what was left at its default is left out."""
        given = vars(self.constraints) | {"protect": list(self.constraints.protect)}
        kept = {key: value for key, value in given.items() if value != CONSTRAINTS[key]}
        more = {"blocks": blocks, "batch_size": self.batch_size}
        kept |= {key: value for key, value in more.items() if value is not None}
        return {"name": self.planner, "seed": self.seed, "measure": measure, **kept, **self.options}


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


def _edits(space: Space, selection: Selection) -> tuple[Edit, ...]:
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
