"""The frontier as a page, as CSV and as a figure for papers: all pure functions of frontier.json."""

import csv
import io
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from simprune.core.store import finite

from . import _environment, units
from .figures import _ticks, picture, tag
from .paper import COLOURS, MARKERS, STYLE

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
    page = _environment().get_template("frontier.html")
    rates = [rate for rate in RATES if any(point[rate] is not None for point in data["points"])]
    return page.render(data=data, rates=rates, costs=along(data), chart=chart, headline=_headline(data), marker=_marker)


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
    rates = [rate for rate in RATES if any(point[rate] is not None for point in data["points"])]
    if not rates:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        figure = _figure(data, rates)
        for ending in ("svg", "png"):
            path = folder / f"frontier.{ending}"
            figure.savefig(path, dpi=300, metadata={"Date": None} if ending == "svg" else None)
            written.append(path)
    return written


def _figure(data: dict[str, Any], rates: list[str]) -> Figure:
    figure = Figure(figsize=(6.8, 2.6 * len(rates)), layout="constrained")
    costs = along(data)
    grid = figure.subplots(len(rates), len(costs), sharey="row", squeeze=False)
    for row, rate in zip(grid, rates, strict=True):
        for axes, (cost, label) in zip(row, costs.items(), strict=True):
            if data["original"][rate] is not None:
                axes.axhline(100 * data["original"][rate], color="0.4", lw=0.8, ls="--")
            for number, curve in enumerate(data["curves"]):
                points = _known(data, curve, cost, rate)
                if not points:
                    continue
                x, y = [100 * point[cost] for point in points], [100 * point[rate] for point in points]
                colour, kind = COLOURS[number % 4], ":" if curve == "random" else "-"
                axes.plot(x, y, MARKERS[number % 4] + kind, color=colour, ms=3.5, lw=1, label=curve)
                for place, point in zip(x, points, strict=True):
                    if point[f"{rate}_bounds"]:
                        axes.vlines(
                            place, *(100 * end for end in point[f"{rate}_bounds"]), color=colour, lw=0.7, alpha=0.5
                        )
            axes.set_xlabel(f"{label} (%)")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{rate} (%)")
    grid[0][0].legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, handletextpad=0.2)
    return figure


def along(data: dict[str, Any]) -> dict[str, str]:
    """The costs that rates are drawn against, with their names; that of the budgets first."""
    kind = data.get("kind", "macs")
    every = COSTS | MORE
    return {key: every[key] for key in dict.fromkeys((kind, *COSTS))}


def chart(data: dict[str, Any], cost: str, rate: str) -> Markup:
    """One picture: a rate against a share of the original's cost; dashed, the original."""
    curves = {curve: _known(data, curve, cost, rate) for curve in data["curves"]}
    points = [point for found in curves.values() for point in found]
    reference = data["original"].get(rate)
    values = [point[rate] for point in points] + ([reference] if reference is not None else [])
    across, up = _ticks(0, max([1.0, *(point[cost] for point in points)])), _ticks(min(values), max(values))
    left, width, height = 48, 360, 210

    def x(value: float) -> float:
        return left + (value - across[0]) / (across[-1] - across[0]) * width

    def y(value: float) -> float:
        return 10 + (1 - (value - up[0]) / (up[-1] - up[0])) * height

    marks = []
    for tick in across:
        marks.append(tag("line", x1=x(tick), x2=x(tick), y1=10, y2=10 + height, class_="grid"))
        marks.append(tag("text", units.percent(tick, 0), x=x(tick), y=height + 27, class_="middle small"))
    for tick in up:
        marks.append(tag("line", x1=left, x2=left + width, y1=y(tick), y2=y(tick), class_="grid"))
        marks.append(tag("text", units.percent(tick, 1), x=left - 8, y=y(tick) + 4, class_="end small"))
    if reference is not None:
        marks.append(tag("line", x1=left, x2=left + width, y1=y(reference), y2=y(reference), class_="reference"))
    for curve, found in curves.items():
        line = " ".join(f"{x(point[cost]):.1f},{y(point[rate]):.1f}" for point in found)
        if len(found) > 1:
            marks.append(tag("polyline", points=line, class_=f"line {curve}"))
        for point in found:
            said = f"{curve}: {units.percent(point[rate])} at {units.percent(point[cost])}"
            marks.append(_mark(curve, x(point[cost]), y(point[rate]), said))
    described = f"{rate} against {along(data)[cost]}, {len(points)} points of {len(curves)} curves"
    return picture(left + width + 20, height + 34, described, *marks)


def _mark(curve: str, x: float, y: float, said: str = "") -> Markup:
    """Every curve has a shape of its own: colour is never the only sign."""
    title = tag("title", said) if said else None
    if curve == "depth":
        return tag("rect", title, x=x - 4, y=y - 4, width=8, height=8, class_=f"mark {curve}")
    if curve == "width":
        return tag("path", title, d=f"M{x:.1f} {y - 5:.1f}l5 9h-10z", class_=f"mark {curve}")
    return tag("circle", title, cx=x, cy=y, r=4.5, class_=f"mark {curve}")


def _marker(curve: str) -> Markup:
    """The mark of a curve for the key above the pictures."""
    return picture(26, 12, curve, tag("line", x1=0, x2=26, y1=6, y2=6, class_=f"line {curve}"), _mark(curve, 13, 6))


def _known(data: dict[str, Any], curve: str, cost: str, rate: str) -> list[dict[str, Any]]:
    """The points of a curve with both figures, in order of the budget: of latencies, the order may differ."""
    return [
        point
        for point in data["points"]
        if point["curve"] == curve and point[cost] is not None and point[rate] is not None
    ]


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
