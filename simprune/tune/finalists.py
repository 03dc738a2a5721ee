"""Finalists: a few plans are tried on the network, and the least error wins.

Damages compare blocks well with blocks, and channels with channels. How much of a budget should come from blocks and
how much from channels shows only once plans have been edited and repaired. That is one number, the number of removed
blocks, so a few plans suffice to search it. Where blocks alone go, their damages say what each of them costs, and not
that a repair makes up for one gap better than for several. So runs of blocks next to each other are tried as well.

A plan is tried by the change of the repaired network's output on inputs held out of the repair (`HoldoutTrial`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simprune.core.batches import checked, inputs_of, rows_at
from simprune.core.example import as_batch, rows_of
from simprune.core.holdout import held_out
from simprune.core.plain import short
from simprune.core.plan import Method, Plan
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy
from simprune.core.tokens import speaks
from simprune.repair.recovery import Recovery
from simprune.trace.answers import Answers, answer, divergences_of_inputs, errors_of_inputs
from simprune.trace.network import Network

INPUTS = 1024  # calibration inputs in use: comparing plans takes fewer than repairing the final one
# (redundancy, number of blocks to remove or None) -> plan; ValueError where no plan meets the budget
Make = Callable[[Redundancy, int | None], Plan]


def try_plans(redundancy: Redundancy, make: Make, errors: Callable[[Plan], Tensor], count: int) -> Plan:
    """The plan of least error among up to `count` plans.

    The plan that `make` prefers by damages is among them. Where blocks and channels compete, the others differ in their
    numbers of blocks, which are evenly spread; from a count of 3 on, the plan without blocks and the plan of blocks
    alone are among them, where they reach the budget. Plans whose mean error exceeds the least by no more than the
    standard error of the difference are tied with the best; of these the plan of least expected damage is taken.

    Where only blocks can go, the others are runs of as many blocks next to each other, those of least damage in all,
    and the plan of least error is taken: what is expected of single blocks says nothing of a run.

    Args:
        redundancy: of all structures.
        make: returns the plan that removes a number of blocks, or with None the number that it prefers.
        errors: (outputs,) the errors of a plan, of the same outputs for every plan.
        count: plans that are tried at most.

    Returns:
        The plan, with a row for every plan tried in its `planner`. Where there are only channels, or there is no other
        plan, nothing is tried and the plan that `make` prefers is returned.
    """
    first = make(redundancy, None)
    if not first.edits or not redundancy.blocks:
        return first
    only_blocks = not redundancy.channels
    others = (_runs if only_blocks else _of_other_numbers)(redundancy, first, make, count - 1)
    if only_blocks and not others:
        return first
    plans = [first, *others]
    measured = [errors(plan) for plan in progress(plans, "finalists")]
    means = [float(error.mean()) for error in measured]
    chosen = plans[means.index(min(means))] if only_blocks else _least_damage_of_the_best(plans, measured)
    rows: list[dict[str, Any]] = []
    for plan, mean in zip(plans, means, strict=True):
        rows.append({"blocks": len(plan.blocks), "expected": plan.expected["damage"], "measured": short(mean)})
        if only_blocks and plan is not first:
            rows[-1]["run"] = [plan.blocks[0], plan.blocks[-1]]
        if plan is chosen:
            rows[-1]["chosen"] = True
    rows.sort(key=lambda row: row["blocks"])
    return replace(chosen, planner={**chosen.planner, "finalists": rows})


def _least_damage_of_the_best(plans: Sequence[Plan], measured: Sequence[Tensor]) -> Plan:
    """The plan of least expected damage among those that cannot be told from the best by their errors."""
    best = min(measured, key=lambda error: float(error.mean()))

    def tied(error: Tensor) -> bool:
        difference = error - best
        return float(difference.mean()) <= float(difference.std(correction=0)) / len(difference) ** 0.5

    candidates = [plan for plan, error in zip(plans, measured, strict=True) if tied(error)]
    return min(candidates, key=lambda plan: plan.expected["damage"])


def _of_other_numbers(redundancy: Redundancy, first: Plan, make: Make, most: int) -> list[Plan]:
    """Plans of other numbers of blocks than the first, which can be told from it and from each other."""
    try:
        blocks = len(make(replace(redundancy, channels=()), None).blocks)
    except ValueError:  # blocks alone do not reach the budget
        blocks = len(redundancy.blocks)
    plans = {first.edits: first}
    for number in _spread(len(first.blocks), blocks, most + 1):
        try:
            plan = make(redundancy, number)
        except ValueError:  # the first plan meets the budget, so it is this number of blocks that cannot
            continue
        plans.setdefault(plan.edits, plan)
    return [*plans.values()][1:]


def _runs(redundancy: Redundancy, first: Plan, make: Make, most: int) -> list[Plan]:
    """Plans of as many whole blocks next to each other as the first removes, those of least damage in all first."""
    number = len(first.blocks)
    if any(entry.block.replace == "zero" for entry in redundancy.blocks if entry.name in first.blocks):
        return []  # halves of blocks: one after another, they are blocks
    whole = [entry for entry in redundancy.blocks if entry.block.replace != "zero"]
    chains = [[*chain] for _, chain in groupby(whole, key=lambda entry: entry.block.chain)]
    runs = [chain[at : at + number] for chain in chains for at in range(len(chain) - number + 1)]
    plans: list[Plan] = []
    for run in sorted(runs, key=lambda run: sum(entry.damage for entry in run)):
        if len(plans) == most:
            break
        if {entry.name for entry in run} == {*first.blocks}:
            continue
        try:
            plans.append(make(replace(redundancy, blocks=tuple(run)), number))
        except ValueError:  # one of its blocks has to stay, or it saves less than the first plan
            continue
    return plans


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
        return errors_of_inputs(self._answers(plan), self.wanted)

    def losses(self, plan: Plan) -> Tensor:
        """(inputs,) what a plan is compared by: errors, or of a language model divergences, in nats per token."""
        network = self.network
        if len(network.outputs) == 1 and speaks(network.model, as_batch(network.example), network.output):
            return divergences_of_inputs(self._answers(plan), self.wanted)
        return self.errors(plan)

    def _answers(self, plan: Plan) -> Answers:
        small = Recovery(self.rest, method=self.method).follow(plan, self.network).model
        return answer(small, self.held)
