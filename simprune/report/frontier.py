"""The frontier as a page, as CSV and as a figure for papers: all pure functions of frontier.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simprune.core.plain import finite

from . import charts, units
from .template import fill

COSTS = {
    "macs": "multiply-adds kept", "latency": "latency, share of the original's", "params": "parameters kept",
    "bytes": "bytes kept",
}  # fmt: skip
RATES = ("accuracy", "agreement")
COLUMNS = (
    "curve", "kind", "budget", "reachable", "macs", "params", "bytes", "latency", "latency_ms", "accuracy",
    "accuracy_low", "accuracy_high", "agreement", "agreement_low", "agreement_high", "plans", "reason",
)  # fmt: skip


def render_frontier(data: dict[str, Any]) -> str:
    """The page as text; every text is escaped, nothing is loaded.

    >>> "Not reachable" in render_frontier({"curves": {}, "points": [], "original": {}, "notes": []})
    False
    """
    data = {"simprune": "", "model": "", "settings": {}, "inputs": None, "kind": "macs", **finite(data)}
    pictures = []
    for rate in _rates(data):
        for cost, label in _costs(data).items():
            chart = charts.frontier(data, {cost: label}, [rate])
            axes = chart.figure.axes[0]
            raised = axes.get_ylim()[0] > 0 or axes.get_xlim()[0] > 0
            pictures.append((rate, label, charts.inline(chart, rate + cost), raised))
    return fill("frontier.html", data=data, pictures=pictures, headline=_headline(data))


def frontier_csv(data: dict[str, Any]) -> str:
    """One line per point."""
    rows: list[Sequence[Any]] = [COLUMNS]
    for point in data["points"]:
        ends = {
            f"{rate}_{end}": bound
            for rate in RATES
            for end, bound in zip(("low", "high"), point[f"{rate}_bounds"] or (None, None), strict=True)
        }
        rows.append([({"kind": data["kind"]} | point | ends)[column] for column in COLUMNS])
    return units.csv_text(rows)


def save_frontier(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figure as frontier.svg and frontier.png (300 dpi) and return the paths; none without test data."""
    rates = _rates(data)
    return charts.save({"frontier": charts.frontier(data, _costs(data), rates)}, folder) if rates else []


def _rates(data: dict[str, Any]) -> list[str]:
    """Those that were measured."""
    return [rate for rate in RATES if any(point[rate] is not None for point in data["points"])]


def _costs(data: dict[str, Any]) -> dict[str, str]:
    """The costs that rates are drawn against, with their names: that of the budgets, multiply-adds, latency."""
    return {key: COSTS[key] for key in dict.fromkeys((data.get("kind", "macs"), "macs", "latency"))}


def _headline(data: dict[str, Any]) -> str:
    """What is left at the smallest budget of the joint curve, and of the control there."""
    reached = [point for point in data["points"] if point["curve"] == "joint" and point["reachable"]]
    if not reached:
        return "No budget could be reached."
    last = min(reached, key=lambda point: point["budget"])
    rate = next((rate for rate in RATES if last[rate] is not None), None)
    if rate is None:
        return f"{len(reached)} budgets can be reached, down to {units.percent(last['macs'])} of the multiply-adds."
    controls = (point for point in data["points"] if point["curve"] == "random" and point["reachable"])
    chance = next((point[rate] for point in controls if point["budget"] == last["budget"]), None)
    beside = "" if chance is None else f"; a random plan {units.percent(chance)}"
    return f"At {units.percent(last['macs'])} of the multiply-adds: {rate} {units.percent(last[rate])}{beside}."
