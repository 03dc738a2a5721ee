"""Finalists: plans from no blocks to blocks alone, tried on the network; the one that costs the output least wins.

Damages say well how blocks compare with each other, and channels with each other. How much of a budget each should pay
shows only when plans are edited and repaired; and that is one number, of blocks that go.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from simprune.core.plan import Plan
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy

Make = Callable[[Redundancy, int | None], Plan]  # with exactly so many blocks; ValueError: no plan meets the budget


def try_plans(redundancy: Redundancy, make: Make, errors: Callable[[Plan], Tensor], count: int) -> Plan:
    """The plan that costs least of up to `count`, evenly spread over the number of blocks; all are in its `planner`.

    The plan that damages alone would choose is among them; from a count of 3 on those without blocks and of blocks
    alone are too, where they reach the budget. Of plans whose `errors`, of the same outputs, differ from those of the
    best by less than the standard error of that difference, the one that damages prefer is taken. Where there are only
    blocks or only channels, or nothing has to go: the plan as it is.
    """
    first = make(redundancy, None)
    if not first.edits or not redundancy.blocks or not redundancy.channels:
        return first
    tried = {first.edits: first}
    for number in _spread(len(first.blocks), _most(redundancy, make), count):
        try:
            plan = make(redundancy, number)
        except ValueError:  # the first plan was made, so it is this number of blocks that does not go
            continue
        tried.setdefault(plan.edits, plan)
    plans = list(tried.values())
    found = [errors(plan) for plan in progress(plans, "finalists")]
    chosen = _choose([plan.expected["damage"] for plan in plans], found)
    rows = [
        {
            "blocks": len(plan.blocks),
            "expected": plan.expected["damage"],
            "measured": float(f"{float(error.mean()):.4g}"),
        }
        | ({"chosen": True} if place == chosen else {})
        for place, (plan, error) in enumerate(zip(plans, found, strict=True))
    ]
    rows.sort(key=lambda row: row["blocks"])
    return replace(plans[chosen], planner={**plans[chosen].planner, "finalists": rows})


def _choose(expected: Sequence[float], errors: Sequence[Tensor]) -> int:
    """Of what is as good as the best, as far as that can be told, what was expected to damage least."""
    best = min(errors, key=lambda error: float(error.mean()))

    def level(error: Tensor) -> bool:
        worse = error - best
        return float(worse.mean()) <= float(worse.std(correction=0)) / len(worse) ** 0.5

    return min((place for place, error in enumerate(errors) if level(error)), key=lambda place: expected[place])


def _most(redundancy: Redundancy, make: Make) -> int:
    """As many blocks as blocks alone need; all of them where that does not reach the budget."""
    try:
        return len(make(replace(redundancy, channels=()), None).blocks)
    except ValueError:
        return len(redundancy.blocks)


def _spread(chosen: int, most: int, count: int) -> list[int]:
    """Up to `count` - 1 numbers beside the one that is chosen already: 0, `most`, then evenly between."""
    ends = [number for number in dict.fromkeys((0, most)) if number != chosen][: count - 1]
    inner = [number for number in np.rint(np.linspace(0, most, count)).astype(int).tolist() if number not in (0, most)]
    inner = sorted({number for number in inner if number != chosen}, key=lambda number: -abs(number - chosen))
    return [*ends, *inner][: count - 1]
