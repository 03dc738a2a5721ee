"""Pruning in rounds: a little is removed, repaired, trained and checked, then a little more, until a check fails."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simprune.checks import Verdict
from simprune.core.batches import all_tensors
from simprune.core.cost import KINDS
from simprune.core.plan import Plan
from simprune.core.progress import say
from simprune.core.redundancy import Redundancy
from simprune.edit.apply import apply
from simprune.edit.compose import composed
from simprune.planners.budget import Budget
from simprune.repair.recovery import Recovered, Recovery
from simprune.repair.stages import StageTable
from simprune.repair.stand_ins import fit_stand_ins
from simprune.repair.training.state import ROUND
from simprune.trace.context import eval_mode
from simprune.trace.network import Network


@dataclass(frozen=True)
class Round:
    """A model on the way: its plan of the original, how it was repaired and trained, its rows, and its verdict."""

    plan: Plan
    recovered: Recovered
    rows: list[dict[str, Any]]
    verdict: Verdict | None
    budget: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """The round that stays, and what to say of the rounds."""

    chosen: Round
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Procedure:
    """What every round does.

    Args:
        network: the original.
        analyze: the redundancy of a network.
        choose: (network, its redundancy, budget as shares of its costs) -> plan of it.
        recovery: repairs and trains.
        judge: checks a model; None without test batches.
        table: with the original as its first row.
        folder: of the trainings; None: they are not stored.
    """

    network: Network
    analyze: Callable[[Network], Redundancy]
    choose: Callable[[Network, Redundancy, Mapping[str, float]], Plan]
    recovery: Recovery
    judge: Callable[[nn.Module], Verdict] | None
    table: StageTable
    folder: Path | None = None

    def after(self, before: Round | None, redundancy: Redundancy, budget: Mapping[str, float], number: int) -> Round:
        """The next round: from the model of the round before, or from the original, down to a budget.

        Args:
            before: the round before.
            redundancy: of the original.
            budget: as shares of the original's costs.
            number: of the round, from 1.

        Raises:
            ValueError: where the budget is out of reach.
        """
        original = self.network
        if before is None:
            plan = self.choose(original, redundancy, budget)
            small = apply(plan, original)
        else:
            here = Network(before.recovered.model, original.example, original.weights)
            reached, whole = before.rows[-1], self.table.rows[0]
            relative = {kind: min(1.0, share * whole[kind] / reached[kind]) for kind, share in budget.items()}
            step = self.choose(here, self.analyze(here), relative)
            plan = replace(composed(before.plan, step, original, before.recovered.model), budget=dict(budget))
            small = _with_weights_of(apply(step, here), apply(plan, original), original)
        fit_stand_ins(small, plan, original, self.recovery.calibration)
        stages = self.table.beside()
        stages.add("pruned", small)
        folder = None if self.folder is None else self.folder / f"{ROUND}{number}"
        recovered = self.recovery.recover(small, plan, original, stages.add, folder)
        verdict = None if self.judge is None else self.judge(recovered.model)
        return Round(plan, recovered, stages.rows, verdict, budget)


def follow_rounds(
    procedure: Procedure, redundancy: Redundancy, budget: Mapping[str, Any], count: int, schedule: str
) -> Outcome:
    """Rounds with budgets on the way to the last, until one fails its checks or cannot be reached.

    Args:
        procedure: what every round does.
        redundancy: of the original.
        budget: what the last round keeps, of macs, params or bytes.
        count: of rounds.
        schedule: of budgets, "geometric" or "linear" (see `share_at`).

    Returns:
        The last round that passed; the first one where none did.

    Raises:
        ValueError: for a budget of what has to be measured, and where the first round cannot be reached.
    """
    shares = shares_of(budget, procedure.network)
    rounds: list[Round] = []
    notes: list[str] = []
    for number in range(1, count + 1):
        wanted = {kind: share_at(number / count, share, schedule) for kind, share in shares.items()}
        try:
            made = procedure.after(rounds[-1] if rounds else None, redundancy, wanted, number)
        except ValueError as error:
            if not rounds:
                raise
            notes.append(f"round {number} of {count} was left out: {error}")
            break
        outcome = "unchecked" if made.verdict is None else made.verdict.outcome
        said = ", ".join(f"{kind} {share:.3g}" for kind, share in wanted.items())
        say(f"round {number}: {said}: {outcome}")
        failed = outcome not in ("pass", "unchecked")
        if failed and rounds:
            notes.append(f"round {number} of {count} ({said}): {outcome}; the model of round {number - 1} stays")
            break
        rounds.append(made)
        if failed:
            notes.append(f"round 1 of {count} ({said}): {outcome}; there is no round before it to go back to")
            break
    else:
        notes.append(f"all {count} rounds were done")
    if procedure.judge is not None:
        notes.append(
            f"the model was chosen by at most {count} checks on the same test inputs; validate it on inputs that "
            "the rounds have not seen"
        )
    return Outcome(rounds[-1], tuple(notes))


def share_at(part: float, last: float, schedule: str) -> float:
    """What remains after a part of the rounds, where `last` remains after all of them.

    >>> [round(share_at(0.5, 0.25, schedule), 3) for schedule in ("geometric", "linear")]
    [0.5, 0.625]
    """
    return last**part if schedule == "geometric" else 1 - (1 - last) * part


def shares_of(budget: Mapping[str, Any], network: Network) -> dict[str, float]:
    """A budget as shares of the original's costs.

    Raises:
        ValueError: for a budget of memory or latency, which are measured.
    """
    limits = Budget.of(budget)
    if limits.measured.limits:
        kinds = ", ".join(limits.measured.limits)
        raise ValueError(f"rounds: expected a budget of {', '.join(KINDS)}; got one of {kinds}; leave rounds out")
    whole = network.costs.total()
    return {kind: limit.of(getattr(whole, kind)) / getattr(whole, kind) for kind, limit in limits.limits.items()}


def _with_weights_of(source: nn.Module, target: nn.Module, original: Network) -> nn.Module:
    """A module of one plan with the weights of the same module by two plans.

    Raises:
        ValueError: where the two are not the same.
    """
    shapes = [{name: tuple(value.shape) for name, value in part.state_dict().items()} for part in (source, target)]
    if shapes[0] != shapes[1]:
        differing = next(name for name in (*shapes[0], *shapes[1]) if shapes[0].get(name) != shapes[1].get(name))
        raise ValueError(f"rounds: two plans as one give another network, which differs in {differing}")
    target.load_state_dict(source.state_dict())
    args, kwargs = original.example
    with eval_mode(source, target), torch.no_grad():
        outputs = [[*all_tensors(part(*args, **kwargs)).values()] for part in (source, target)]
    if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*outputs, strict=True)):
        raise ValueError("rounds: two plans as one give a network with other outputs")
    return target
