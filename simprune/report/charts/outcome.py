"""What became of a model: the frontier of its plans, its calibration, its training."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import COLUMN, CURVES, INK, LEGEND, MARKERS, PAPER, RULE, Chart, empty_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled()
def frontier(data: Mapping[str, Any], costs: Mapping[str, str], rates: Sequence[str]) -> Chart:
    """What is left (rates) against shares of the original's cost, one curve per kind of plan; dashed, the original."""
    figure = empty_figure(COLUMN / 72 * len(costs), 2.6 * len(rates))
    grid = figure.subplots(len(rates), len(costs), sharey="row", squeeze=False)
    for row, rate in zip(grid, rates, strict=True):
        for axes, (cost, label) in zip(row, costs.items(), strict=True):
            _curves(axes, data, cost, rate)
            axes.set_xlabel(f"{label} (%)")
        row[0].set_ylabel(f"{rate} (%)")
    grid[0][0].legend(ncols=4, **LEGEND)
    return Chart(figure, f"{' and '.join(rates)} against {' and '.join(costs.values())}, {len(data['curves'])} curves")


def _curves(axes: "Axes", data: Mapping[str, Any], cost: str, rate: str) -> None:
    axes.grid(color=RULE, lw=0.5)
    if data["original"][rate] is not None:
        axes.axhline(100 * data["original"][rate], color=INK, lw=0.8, ls="--")
    for number, curve in enumerate(data["curves"]):
        points = [point for point in data["points"] if point["curve"] == curve]  # in order of the budget
        points = [point for point in points if None not in (point[cost], point[rate])]
        colour, line = CURVES[number % 4], ":" if curve == "random" else "-"
        # the first curve lies above the others, whose open and larger marks show around its own where they coincide
        first = number == 0
        look = {"ms": 3.5, "zorder": 4} if first else {"ms": 5.5, "mfc": PAPER, "zorder": 3 - 0.1 * number}
        x, y = [100 * point[cost] for point in points], [100 * point[rate] for point in points]
        axes.plot(x, y, MARKERS[number % 4] + line, color=colour, lw=1.2 if first else 1.8, label=curve, **look)
        for at, bounds in zip(x, (point[f"{rate}_bounds"] for point in points), strict=True):
            if bounds:
                axes.vlines(at, 100 * bounds[0], 100 * bounds[1], color=colour, lw=0.7, alpha=0.5)


@styled()
def reliability(bins: list[dict[str, Any]], name: str) -> Chart:
    """Accuracy by confidence with 95 % intervals; the dashed diagonal is perfect calibration."""
    figure = empty_figure(COLUMN / 72, 3.2)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=INK, lw=0.8, ls="--")
    axes.grid(color=RULE, lw=0.5)
    most = max((part["count"] for part in bins), default=1)
    for part in bins:
        at, size = 100 * part["confidence"], 3 + 6 * math.sqrt(part["count"] / most)
        axes.vlines(at, *(100 * end for end in part["bounds"]), color=CURVES[0], lw=1.2, alpha=0.5)
        axes.plot(at, 100 * part["accuracy"], "o", color=CURVES[0], ms=size)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel="confidence (%)", ylabel="right (%)")
    return Chart(figure, f"Accuracy by confidence, {name} model")


@styled()
def training(epochs: Sequence[Mapping[str, Any]]) -> Chart:
    """Loss in training, and what epochs are judged by on held-out inputs; a ring marks the epoch that stays, at 0 where
    none does. The dashed line is the model before the training."""
    figure = empty_figure(COLUMN / 72, 3.0)
    top, bottom = figure.subplots(2, 1, sharex=True)
    numbers = [row["epoch"] for row in epochs]
    judged = [epochs[0].get("before"), *(row.get("held_out") for row in epochs)]
    series = ((top, numbers, [row["loss"] for row in epochs], 0), (bottom, [0, *numbers], judged, 1))
    for axes, x, values, number in series:
        axes.grid(color=RULE, lw=0.5)
        y = np.array([np.nan if value is None else value for value in values], dtype=float)
        axes.plot(x, y, f"{MARKERS[number]}-", color=CURVES[number], ms=3.5, lw=1.2)
    stays = next((row["epoch"] for row in epochs if row.get("kept")), 0)
    if judged[0] is not None:
        bottom.axhline(judged[0], color=INK, lw=0.8, ls="--")
    if judged[stays] is not None:
        bottom.plot([stays], [judged[stays]], "o", ms=9, mfc="none", mec=INK, mew=0.9)
    by_loss = epochs[0].get("by") == "loss"
    top.set_ylabel("loss in training")
    bottom.set_ylabel("loss, held out" if by_loss else "distance, held out")
    bottom.set_xlabel("epoch")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    what = f"epoch {stays} stays" if stays else "the model from before it stays"
    return Chart(figure, f"Training over {len(epochs)} epochs: loss, and held-out inputs; {what}")
