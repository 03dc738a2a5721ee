"""Why a budget cannot be reached: how far one can go, and what keeps the rest."""

from collections.abc import Iterator, Mapping

from simprune.core.cost import KINDS, Cost
from simprune.core.redundancy import Redundancy
from simprune.planners.budget import Budget
from simprune.planners.space import Space

NAMED = 3  # structures that the message names


def unreachable(redundancy: Redundancy, budget: Budget, least: Cost, space: Space, planner: str) -> ValueError:
    """The error for a budget below `least`, the least cost that the planner can reach."""
    original = redundancy.costs.total()
    share = least.share_of(original)
    reached = ", ".join(
        f"{kind} {share[kind]:.3f} ({getattr(least, kind):,})" for kind in budget.limits if kind in KINDS
    )
    missed = (
        kind
        for kind, limit in budget.counted.limits.items()
        if getattr(least, kind) > limit.of(getattr(original, kind))
    )
    kind = next(missed, "macs")
    held = sorted(_held(redundancy, space, kind), key=lambda item: (-item[0], item[1]))
    names = "; ".join(f"{name}, {part:.1%} of the {kind} ({reason})" for part, name, reason in held[:NAMED])
    more = f" and {len(held) - NAMED} more" if len(held) > NAMED else ""
    stays = f"; what stays: {names}{more}" if held else ""
    return ValueError(
        f"budget: {budget} cannot be reached; removing everything that {planner} may remove leaves {reached}{stays}"
    )


def not_measured(budget: Budget, before: Mapping[str, float], after: Mapping[str, float]) -> ValueError:
    """The error for a budget of latency or memory that no measured network met."""
    shown = {"latency": lambda value: f"{1e3 * value:.3g} ms", "memory": lambda value: f"{value:,.0f} bytes"}
    reached = ", ".join(f"{kind} {shown[kind](after[kind])} of {shown[kind](before[kind])}" for kind in after)
    return ValueError(f"budget: {budget} was not reached by any network that was measured; the nearest has {reached}")


def _held(redundancy: Redundancy, space: Space, kind: str) -> Iterator[tuple[float, str, str]]:
    """(share of the cost, structure, reason) of everything that no selection removes."""
    total = getattr(redundancy.costs.total(), kind)
    free = {menu.entry.name for menu in space.menus} | {entry.name for entry in space.blocks}
    reasons = dict(redundancy.unprunable)
    for entry in redundancy.entries:
        if entry.name not in free:
            reasons[entry.name] = "protected, or too narrow for the constraints"
    for name, reason in reasons.items():
        kept = getattr(redundancy.costs.after(dropped=[name]), kind)
        if kept < total:
            yield 1 - kept / total, name, reason
