"""The frontier: accuracy, agreement and latency at several costs, for joint plans, depth, width and random plans."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simprune.checks import clopper_pearson
from simprune.core.cost import KINDS
from simprune.core.plan import Plan
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy
from simprune.repair.recovery import Recovery
from simprune.repair.stages import StageTable, mean
from simprune.trace.network import Network
from simprune.trace.timing import time_both

CURVES = {"joint": "blocks and channels", "depth": "blocks alone", "width": "channels alone", "random": "the control"}


@dataclass(frozen=True)
class Frontier:
    """One point per curve and budget, as plain data, and the plans behind the points.

    Costs and latency are shares of the original's; bounds are 95 % intervals of rates on the test inputs.
    """

    data: dict[str, Any]
    plans: Mapping[tuple[str, float], Plan]

    @property
    def points(self) -> list[dict[str, Any]]:
        """One row per curve and budget."""
        return self.data["points"]

    def curve(self, name: str) -> list[dict[str, Any]]:
        """The points of one curve whose budget could be reached, the largest budget first."""
        return [point for point in self.points if point["curve"] == name and point["reachable"]]


def trace_frontier(
    network: Network,
    redundancy: Redundancy,
    table: StageTable,
    recovery: Recovery,
    choose: Callable[..., Plan],
    budgets: Sequence[float],
    kind: str,
    draws: Sequence[int],
) -> Frontier:
    """One point per curve and share of one kind of cost, from one analysis.

    Args:
        network: the original.
        redundancy: of all its structures.
        table: with the original as its only row.
        recovery: repairs and trains every model.
        choose: (redundancy, budget, seed of a random plan or None) -> plan.
        budgets: shares of the cost.
        kind: of cost.
        draws: seeds of random plans.
    """
    choose(redundancy, {"macs": 1.0}, None)  # wrong arguments raise here, so that later errors are about the budget
    follow = _Points(network, recovery, table)
    shares = sorted(budgets, reverse=True)
    tasks: list[tuple[str, float, Callable[[], list[Plan]]]] = [
        (curve, share, (lambda part=part, share=share: [choose(part, {kind: share}, None)]))
        for curve, part in _parts(redundancy).items()
        for share in shares
    ]
    tasks += [
        ("random", share, (lambda share=share: [choose(redundancy, {kind: share}, draw) for draw in draws]))
        for share in shares
    ]
    points, plans = [], {}
    for curve, share, make in progress(tasks, "frontier"):
        point, chosen = follow.point(curve, share, make)
        points.append(point)
        if len(chosen) == 1 and curve != "random":
            plans[curve, share] = chosen[0]
    data = {
        "inputs": follow.count,
        "original": {key: value for key, value in table.rows[0].items() if key != "name"},
        "curves": {curve: CURVES[curve] for curve in dict.fromkeys(task[0] for task in tasks)},
        "points": points,
    }
    return Frontier(data, plans)


def _parts(redundancy: Redundancy) -> dict[str, Redundancy]:
    """The structures of every curve. Where there are only blocks or only channels, the joint curve is theirs."""
    parts = {"joint": redundancy}
    if redundancy.blocks and redundancy.channels:
        parts |= {
            "depth": dataclasses.replace(redundancy, channels=()),
            "width": dataclasses.replace(redundancy, blocks=()),
        }
    return parts


def check_shares(kind: str, budgets: Sequence[Any]) -> None:
    """ValueError, in one line, for no shares, and for one that is listed twice."""
    if not budgets:
        raise ValueError(f"budget: the list is empty; give shares of the {kind} to keep, such as [0.9, 0.7, 0.5, 0.3]")
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"budget: a share is listed twice in {list(budgets)}; list each once")


@dataclass(frozen=True)
class _Points:
    """From plans to points: a plan is followed, its last stage read, and its model timed in turns with the original."""

    network: Network
    recovery: Recovery
    stages: StageTable

    @property
    def count(self) -> int | None:
        """The number of test inputs; None without any."""
        return None if self.stages.original is None else len(self.stages.original.logits)

    def point(self, curve: str, share: float, make: Callable[[], list[Plan]]) -> tuple[dict[str, Any], list[Plan]]:
        """The point of one curve at one share, and its plans; a share out of reach is a point without figures."""
        asked = {"curve": curve, "budget": share}
        try:
            plans = make()
        except ValueError as error:  # the arguments are right, so the budget is out of reach
            empty = dict.fromkeys((*KINDS, "accuracy", "agreement", "accuracy_bounds", "agreement_bounds", "latency"))
            return asked | {"reachable": False, "reason": str(error)} | empty | {"latency_ms": None, "plans": 0}, []
        figures = mean([self._row(plan) for plan in plans])
        bounds = {f"{key}_bounds": self._bounds(figures[key], len(plans)) for key in ("accuracy", "agreement")}
        return asked | {"reachable": True, "reason": ""} | figures | bounds | {"plans": len(plans)}, plans

    def _row(self, plan: Plan) -> dict[str, Any]:
        """What a plan's model costs, as shares of the original, and answers."""
        stages = self.stages.untimed()
        small = self.recovery.follow(plan, self.network, stages.add).model
        original, last = self.stages.rows[0], stages.rows[-1]
        _, after, ratio = time_both(self.network.model, small, self.stages.batch)
        return {
            **{kind: last[kind] / max(original[kind], 1) for kind in KINDS},
            "accuracy": last["accuracy"],
            "agreement": last["agreement"],
            "latency": ratio,
            "latency_ms": 1e3 * after,
        }

    def _bounds(self, rate: float | None, plans: int) -> list[float] | None:
        """95 % interval (Clopper-Pearson) of a rate on the test inputs; None for a mean over several plans."""
        if rate is None or plans > 1 or self.count is None:
            return None
        lower, upper = clopper_pearson(round(rate * self.count), self.count, 0.975)
        return [float(lower), float(upper)]
