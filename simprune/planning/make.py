"""From redundancy and a budget to a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from simprune.cost import Cost
from simprune.planning.budget import Budget
from simprune.planning.choosers import Step, chooser
from simprune.planning.plan import Edit, Plan
from simprune.redundancy import ChannelRedundancy, Redundancy


def plan(
    redundancy: Redundancy,
    budget: Mapping[str, float | None],
    planner: str = "greedy",
    seed: int = 0,
    **options: Any,
) -> Plan:
    """Choose what to remove so that at most `budget` of the original's cost is kept.

    `budget`: fractions in (0, 1] of macs, params, bytes. The same arguments give the same plan. Raises ValueError
    when the budget cannot be reached (the message says how far one can go) and KeyError for an unknown planner.
    """
    limits = Budget.of(budget)
    steps = chooser(planner)(redundancy, seed=seed, **options)
    original = redundancy.costs.total()
    count = _shortest(redundancy, steps, limits, original)
    if count is None:
        least = _cost(redundancy, steps).share_of(original)
        reached = ", ".join(f"{kind} {least[kind]:.3f}" for kind in limits.limits)
        wanted = ", ".join(f"{kind} {limit:g}" for kind, limit in limits.limits.items())
        raise ValueError(
            f"budget: {wanted} cannot be reached; removing everything removable leaves {reached} "
            f"({len(redundancy.blocks)} blocks and {len(redundancy.channels)} channel groups are removable, "
            f"{len(redundancy.unprunable)} structures are not: see `simprune analyze`)"
        )
    chosen = _give_back(redundancy, steps[:count], limits, original)
    return Plan(
        edits=_edits(redundancy, chosen),
        fingerprint=redundancy.fingerprint,
        inputs=redundancy.inputs,
        budget=dict(limits.limits),
        planner={"name": planner, "seed": seed, "measure": redundancy.measure, **options},
        original=original.to_dict(),
        expected=_cost(redundancy, chosen).to_dict(),
    )


def _shortest(redundancy: Redundancy, steps: Sequence[Step], budget: Budget, original: Cost) -> int | None:
    """Fewest leading steps that meet the budget, by bisection: cost only falls with every step."""
    low, high = 0, len(steps)
    if not budget.met(_cost(redundancy, steps), original):
        return None
    while low < high:
        middle = (low + high) // 2
        if budget.met(_cost(redundancy, steps[:middle]), original):
            high = middle
        else:
            low = middle + 1
    return low


def _give_back(redundancy: Redundancy, chosen: Sequence[Step], budget: Budget, original: Cost) -> list[Step]:
    """Undo what a last, large step has made needless: the most damaging other steps, as many as the budget allows."""
    dearest = sorted(chosen[:-1], key=lambda step: -step.damage)

    def without(count: int) -> list[Step]:
        undone = {(step.name, step.channel) for step in dearest[:count]}
        return [step for step in chosen if (step.name, step.channel) not in undone]

    low, high = 0, len(dearest)
    while low < high:
        middle = (low + high + 1) // 2
        if budget.met(_cost(redundancy, without(middle)), original):
            low = middle
        else:
            high = middle - 1
    return without(low)


def _gather(redundancy: Redundancy, steps: Sequence[Step]) -> tuple[list[str], dict[str, list[int]]]:
    """Blocks that go and channels that go; what is inside a block that goes needs no edit of its own."""
    blocks = [step.name for step in steps if step.channel is None]
    blocks = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    channels: dict[str, list[int]] = {}
    for step in steps:
        if step.channel is not None and not any(f"{step.name}.".startswith(f"{block}.") for block in blocks):
            channels.setdefault(step.name, []).append(step.channel)
    return blocks, channels


def _cost(redundancy: Redundancy, steps: Sequence[Step]) -> Cost:
    blocks, channels = _gather(redundancy, steps)
    groups = {entry.name: entry.group for entry in redundancy.channels}
    cut: dict[tuple[str, int], int] = {}
    for name, gone in channels.items():
        for key, count in groups[name].cut(gone).items():
            cut[key] = cut.get(key, 0) + count
    return redundancy.costs.after(cut, blocks)


def _edits(redundancy: Redundancy, steps: Sequence[Step]) -> tuple[Edit, ...]:
    blocks, channels = _gather(redundancy, steps)
    rank = {name: place for place, name in enumerate(blocks, 1)}
    edits = [
        Edit(
            "block",
            entry.name,
            reason=f"{entry.why(redundancy.measure)}; "
            f"{entry.share:.1%} of the macs; taken as block {rank[entry.name]} of {len(redundancy.blocks)}",
            replace=entry.block.replace,  # pyright: ignore[reportArgumentType]
        )
        for entry in redundancy.blocks
        if entry.name in rank
    ]
    edits += [
        Edit(
            entry.group.kind,
            entry.name,
            entry.group.expand(channels[entry.name]),
            entry.group.width,
            _why(entry, channels[entry.name]),
        )
        for entry in redundancy.channels
        if entry.name in channels
    ]
    return tuple(edits)


WHY = {
    "predictability": "the others predict {least:.1%} or more (mean {mean:.1%}) of the variance of each",
    "second_order": "the others, readers refitted, make up for {least:.1%} or more (mean {mean:.1%}) of each",
}


def _why(entry: ChannelRedundancy, gone: Sequence[int]) -> str:
    made_up = [entry.redundancy[channel] for channel in gone]
    wording = WHY.get(entry.score, "redundancy {least:.3f} or more (mean {mean:.3f}) by " + entry.score)
    said = wording.format(least=min(made_up), mean=sum(made_up) / len(made_up))
    return f"{said}; {len(gone)} of {entry.group.size} go"
