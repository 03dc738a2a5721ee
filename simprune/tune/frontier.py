"""The frontier: accuracy, agreement and latency at several costs, for joint plans, depth, width and random plans."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from simprune.checks import rate_interval
from simprune.core.cost import KINDS
from simprune.core.plan import Plan
from simprune.core.progress import progress
from simprune.core.redundancy import Redundancy
from simprune.repair.recovery import Recovery
from simprune.repair.stages import StageTable, mean
from simprune.trace.network import Network

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

    Returns:
        The points; a budget out of reach has a reason in place of figures. The plans, without the random ones.
    """
    choose(redundancy, {"macs": 1.0}, None)  # wrong arguments raise here, so that later errors are about the budget
    parts = {"joint": redundancy}  # where there are only blocks or only channels, the joint curve is theirs
    if redundancy.blocks and redundancy.channels:
        parts |= {"depth": replace(redundancy, channels=()), "width": replace(redundancy, blocks=())}
    parts["random"] = redundancy
    tasks = [(curve, share) for curve in parts for share in sorted(budgets, reverse=True)]
    count = None if table.original is None else len(table.original.logits)
    points, plans = [], {}
    timed: list[int] = []  # the points of the table's rows behind the original's
    for curve, share in progress(tasks, "frontier"):
        point: dict[str, Any] = {"curve": curve, "budget": share}
        try:
            tried = [choose(parts[curve], {kind: share}, draw) for draw in (draws if curve == "random" else [None])]
        except ValueError as error:  # the arguments are right, so the budget is out of reach
            empty = dict.fromkeys((*KINDS, "accuracy", "agreement", "accuracy_bounds", "agreement_bounds", "latency"))
            points.append(point | {"reachable": False, "reason": str(error)} | empty | {"latency_ms": None, "plans": 0})
            continue
        rows, models = zip(*(_figures(plan, network, table, recovery) for plan in tried), strict=True)
        figures = mean(rows)
        table.append({}, *models)  # which holds on to one model of every architecture, until all are timed together
        timed.append(len(points))
        exact = count if len(tried) == 1 else None  # a mean over several plans is no rate, and has no interval
        bounds = {f"{key}_bounds": _bounds(figures[key], exact) for key in ("accuracy", "agreement")}
        points.append(point | {"reachable": True, "reason": ""} | figures | bounds | {"plans": len(tried)})
        if curve != "random":
            plans[curve, share] = tried[0]
    timing = table.time()
    for index, row in zip(timed, table.rows[1:], strict=True):
        keys = ("latency_ms", "latency_spread_ms", "latency_told_apart")
        points[index] |= {key: row[key] for key in keys} | {"latency": row["latency_ms"] / table.rows[0]["latency_ms"]}
    data = {
        "timing": timing,
        "inputs": count,
        "original": {key: value for key, value in table.rows[0].items() if key != "name"},
        "curves": {curve: CURVES[curve] for curve in parts},
        "points": points,
    }
    return Frontier(data, plans)


def _figures(plan: Plan, network: Network, table: StageTable, recovery: Recovery) -> tuple[dict[str, Any], nn.Module]:
    """Costs of a plan's model as shares of the original's, and its answers; and the model."""
    stages = table.beside()
    model = recovery.follow(plan, network, stages.add).model
    original, last = table.rows[0], stages.rows[-1]
    costs = {kind: last[kind] / max(original[kind], 1) for kind in KINDS}
    figures = costs | {key: last[key] for key in ("accuracy", "agreement")} | {"latency": None, "latency_ms": None}
    return figures, model


def _bounds(rate: float | None, count: int | None) -> list[float] | None:
    """The interval of a rate on `count` inputs; None without a rate or without inputs."""
    return None if rate is None or count is None else rate_interval(rate, count)


def check_shares(kind: str, budgets: Sequence[Any]) -> None:
    """Raise ValueError, in one line, for an empty list of shares, and for a share that is listed twice."""
    if not budgets:
        raise ValueError(f"budget: the list is empty; give shares of the {kind} to keep, such as [0.9, 0.7, 0.5, 0.3]")
    if len(set(budgets)) < len(budgets):
        raise ValueError(f"budget: a share is listed twice in {list(budgets)}; list each once")
