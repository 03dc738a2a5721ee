"""The error for a budget that no plan meets: the least cost that can be reached, and what cannot be removed."""

from collections.abc import Iterator, Sequence

from simprune.core.cost import Cost
from simprune.core.redundancy import Redundancy
from simprune.planners.budget import Budget
from simprune.planners.space import Space

NAMED = 3  # the message names at most so many reasons, and so many structures for a reason


def unreachable(redundancy: Redundancy, budget: Budget, least: Cost, space: Space, planner: str) -> ValueError:
    """The error for a budget below what a planner can reach.

    Args:
        redundancy: of the original's structures.
        budget: that cannot be met.
        least: the least cost that the planner can reach.
        space: what may be selected.
        planner: its name.
    """
    original, counted = redundancy.costs.total(), budget.counted.limits
    share = least.share_of(original)
    reached = ", ".join(f"{kind} {share[kind]:.3f} ({getattr(least, kind):,})" for kind in counted)
    missed = [kind for kind, limit in counted.items() if getattr(least, kind) > limit.of(getattr(original, kind))]
    kind = missed[0] if missed else "macs"
    alike: dict[str, list[tuple[float, str]]] = {}  # what stays for the same reason, with its share of the cost
    for part, name, reason in sorted(_staying(redundancy, space, kind), key=lambda item: (-item[0], item[1])):
        alike.setdefault(reason, []).append((part, name))
    staying = sorted(alike.items(), key=lambda item: -sum(part for part, _ in item[1]))
    names = "; ".join(
        f"{_several(parts)}, {sum(part for part, _ in parts):.1%} of the {kind} ({reason})"
        for reason, parts in staying[:NAMED]
    )
    others = sum(len(parts) for _, parts in staying[NAMED:])
    more = f" and {others} more" if others else ""
    stays = f"; what stays: {names}{more}" if staying else ""
    return ValueError(
        f"budget: {budget} cannot be reached; removing everything that {planner} may remove leaves {reached}{stays}"
    )


def _several(parts: Sequence[tuple[float, str]]) -> str:
    names = ", ".join(name for _, name in parts[:NAMED])
    return f"{names} and {len(parts) - NAMED} more" if len(parts) > NAMED else names


def _staying(redundancy: Redundancy, space: Space, kind: str) -> Iterator[tuple[float, str, str]]:
    """(share of the cost, name, reason) of every structure that no selection removes."""
    total = getattr(redundancy.costs.total(), kind)
    free = {menu.entry.name for menu in space.menus} | {entry.name for entry in space.blocks}
    bound = [entry.name for entry in redundancy.entries if entry.name not in free]
    reasons = dict(redundancy.unprunable) | dict.fromkeys(bound, "protected, or too narrow for the constraints")
    for name, reason in reasons.items():
        without = getattr(redundancy.costs.after(dropped=[name]), kind)
        if without < total:
            yield 1 - without / total, name, reason
