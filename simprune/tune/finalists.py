"""Finalists: plans that differ in their number of blocks are tried on the network, and the least error wins.

Damages compare blocks well with blocks, and channels with channels. How much of a budget should come from blocks and
how much from channels shows only once plans have been edited and repaired. That is one number, the number of removed
blocks, so a few plans suffice to search it.

A plan is tried by the change of the repaired network's output on inputs held out of the repair (`HoldoutTrial`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune.core.batches import checked, inputs_of, rows_at
from simprune.core.example import rows_of
from simprune.core.holdout import held_out
from simprune.core.plain import short
from simprune.core.plan import Method, Plan
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy
from simprune.repair.recovery import Recovery
from simprune.trace.answers import Answers, answer, errors_of_inputs
from simprune.trace.network import Network

INPUTS = 1024  # calibration inputs in use: comparing plans takes fewer than repairing the final one
# (redundancy, number of blocks to remove or None) -> plan; ValueError where no plan meets the budget
Make = Callable[[Redundancy, int | None], Plan]


def try_plans(redundancy: Redundancy, make: Make, errors: Callable[[Plan], Tensor], count: int) -> Plan:
    """The plan of least error among up to `count` plans whose numbers of blocks are evenly spread.

    The plan that `make` prefers by damages is among them. From a count of 3 on, so are the plan without blocks and the
    plan of blocks alone, where they reach the budget. Plans whose mean error exceeds the least by no more than the
    standard error of the difference are tied with the best; of these the plan of least expected damage is taken.

    Args:
        redundancy: of all structures.
        make: returns the plan that removes a number of blocks, or with None the number that it prefers.
        errors: (outputs,) the errors of a plan, of the same outputs for every plan.
        count: plans that are tried at most.

    Returns:
        The plan, with a row for every plan tried in its `planner`. Where there are only blocks or only channels, or
        nothing has to be removed, nothing is tried and the plan that `make` prefers is returned.
    """
    first = make(redundancy, None)
    if not first.edits or not redundancy.blocks or not redundancy.channels:
        return first
    try:
        most = len(make(replace(redundancy, channels=()), None).blocks)
    except ValueError:  # blocks alone do not reach the budget
        most = len(redundancy.blocks)
    tried = {first.edits: first}
    for number in _spread(len(first.blocks), most, count):
        try:
            plan = make(redundancy, number)
        except ValueError:  # the first plan meets the budget, so it is this number of blocks that cannot
            continue
        tried.setdefault(plan.edits, plan)
    plans = list(tried.values())
    measured = [errors(plan) for plan in progress(plans, "finalists")]
    best = min(measured, key=lambda error: float(error.mean()))

    def tied(error: Tensor) -> bool:
        difference = error - best
        return float(difference.mean()) <= float(difference.std(correction=0)) / len(difference) ** 0.5

    candidates = [plan for plan, error in zip(plans, measured, strict=True) if tied(error)]
    chosen = min(candidates, key=lambda plan: plan.expected["damage"])
    rows: list[dict[str, Any]] = []
    for plan, error in zip(plans, measured, strict=True):
        mean = short(float(error.mean()))
        rows.append({"blocks": len(plan.blocks), "expected": plan.expected["damage"], "measured": mean})
        if plan is chosen:
            rows[-1]["chosen"] = True
    rows.sort(key=lambda row: row["blocks"])
    return replace(chosen, planner={**chosen.planner, "finalists": rows})


def _spread(chosen: int, most: int, count: int) -> list[int]:
    """Up to `count` - 1 numbers of blocks other than `chosen`: 0, then `most`, then evenly between, far ones first."""
    ends = [number for number in dict.fromkeys((0, most)) if number != chosen]
    spread = np.rint(np.linspace(0, most, count)).astype(int).tolist()
    inner = {number for number in spread if number not in (0, most, chosen)}
    return [*ends, *sorted(inner, key=lambda number: -abs(number - chosen))][: count - 1]


@dataclass(frozen=True)
class HoldoutTrial:
    """The first `INPUTS` calibration inputs, split by `simprune.core.holdout`.

    `held`: inputs to measure on. `rest`: inputs to repair with by `method`. `wanted`: the original's outputs on `held`.
    """

    network: Network
    held: Sequence[Any]
    rest: Sequence[Any]
    wanted: Answers
    method: Method

    @classmethod
    def of(cls, network: Network, calibration: Iterable, method: Method) -> "HoldoutTrial":
        """Split the calibration inputs; ValueError for fewer than two."""
        held, rest, first = [], [], 0
        for batch in checked(calibration, "calibration"):
            inputs = rows_of(inputs_of(batch))
            out, used = held_out(first, inputs), torch.arange(first, first + inputs) < INPUTS
            for part, rows in ((held, out & used), (rest, ~out & used)):
                if rows.any():
                    part.append(batch if rows.all() else rows_at(batch, rows))
            first += inputs
            if first >= INPUTS:
                break
        if not held:
            raise ValueError(
                f"to try plans, a quarter of the calibration inputs is held out: give two or more; got {first}"
            )
        return cls(network, held, rest, answer(network.model, held, network.weights), method)

    def errors(self, plan: Plan) -> Tensor:
        """(inputs,) squared changes of all outputs as shares of their variances, after one edit and one repair."""
        small = Recovery(self.rest, method=self.method).follow(plan, self.network).model
        return errors_of_inputs(answer(small, self.held), self.wanted)
