"""From redundancy and a budget to a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from simprune.planning.budget import Amount, Budget
from simprune.planning.choosers import check_options, chooser
from simprune.planning.constraints import Constraints
from simprune.planning.plan import Edit, Plan
from simprune.planning.refusal import unreachable
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
    **options: Any,
) -> Plan:
    """Choose what to remove so that at most `budget` of the original's cost is kept.

    `budget`: shares in (0, 1] of the original, or amounts such as "60M", of macs, params, bytes (see
    `simprune.planning.budget`). `protect`, `round_to`, `min_width`, `max_share`: what must stay (see
    `simprune.planning.constraints`). Further options are the planner's own. The same arguments give the same plan.
    Raises ValueError when the budget cannot be reached (the message says how far one can go) and KeyError for an
    unknown planner.
    """
    choose = chooser(planner)
    check_options(planner, options)
    constraints = Constraints(protect, round_to, min_width, max_share)
    limits = _limits(budget, options.get("threshold"))
    original = redundancy.costs.total()
    space = Space.of(redundancy, constraints)
    ceilings = (
        {} if limits is None else {kind: each.of(getattr(original, kind)) for kind, each in limits.limits.items()}
    )
    space, choice = choose(Search(space, ceilings, constraints, seed), **options)
    expected = space.exact(choice)
    if limits is not None and not limits.met(expected, original):
        raise unreachable(redundancy, limits, expected, space, planner)
    damage = float(space.damage(choice.levels[None], choice.blocks[None])[0])
    given = {"protect": list(constraints.protect), "round_to": round_to, "min_width": min_width, "max_share": max_share}
    kept = {key: value for key, value in given.items() if value != CONSTRAINTS[key]}
    return Plan(
        edits=_edits(space, choice),
        fingerprint=redundancy.fingerprint,
        inputs=redundancy.inputs,
        budget={} if limits is None else limits.to_dict(),
        planner={"name": planner, "seed": seed, "measure": redundancy.measure, **kept, **options},
        original=original.to_dict(),
        expected={**expected.to_dict(), "damage": _short(damage)},
    )


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
