"""The frontier as a page, as CSV and as a figure for papers: all pure functions of frontier.json."""

import csv
import io
from pathlib import Path
from typing import Any

from simprune.core.plain import finite

from . import charts, units
from .template import fill

COSTS = {"macs": "multiply-adds kept", "latency": "latency, share of the original's"}
MORE = {"params": "parameters kept", "bytes": "bytes kept"}  # shown where the budgets are of that kind
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
    pictures = [
        {
            "rate": rate,
            "label": label,
            "chart": charts.inline(charts.frontier(data, {cost: label}, [rate]), rate + cost),
        }
        for rate in _rates(data)
        for cost, label in along(data).items()
    ]
    return fill("frontier.html", data=data, pictures=pictures, headline=_headline(data))


def frontier_csv(data: dict[str, Any]) -> str:
    """One line per point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in data["points"]:
        ends = {
            f"{rate}_{end}": (point[f"{rate}_bounds"] or (None, None))[place]
            for rate in RATES
            for place, end in enumerate(("low", "high"))
        }
        writer.writerow([({"kind": data["kind"]} | point | ends)[column] for column in COLUMNS])
    return text.getvalue()


def save_frontier(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figure as frontier.svg and frontier.png (300 dpi) and return the paths; none without test data."""
    rates = _rates(data)
    return charts.save({"frontier": charts.frontier(data, along(data), rates)}, folder) if rates else []


def _rates(data: dict[str, Any]) -> list[str]:
    """Those that were measured."""
    return [rate for rate in RATES if any(point[rate] is not None for point in data["points"])]


def along(data: dict[str, Any]) -> dict[str, str]:
    """The costs that rates are drawn against, with their names; that of the budgets first."""
    kind = data.get("kind", "macs")
    every = COSTS | MORE
    return {key: every[key] for key in dict.fromkeys((kind, *COSTS))}


def _headline(data: dict[str, Any]) -> str:
    """What is left at the smallest budget of the joint curve, and of the control there."""
    reached = [point for point in data["points"] if point["curve"] == "joint" and point["reachable"]]
    if not reached:
        return "No budget could be reached."
    last = min(reached, key=lambda point: point["budget"])
    rate = next((rate for rate in RATES if last[rate] is not None), None)
    if rate is None:
        return f"{len(reached)} budgets can be reached, down to {units.percent(last['macs'])} of the multiply-adds."
    chance = next(
        (
            p[rate]
            for p in data["points"]
            if p["curve"] == "random" and p["budget"] == last["budget"] and p["reachable"]
        ),
        None,
    )
    beside = "" if chance is None else f"; a random plan {units.percent(chance)}"
    return f"At {units.percent(last['macs'])} of the multiply-adds: {rate} {units.percent(last[rate])}{beside}."
