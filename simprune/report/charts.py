"""The charts: one function per chart, from data to a matplotlib figure that stands both in a page and in a paper.

Widths are those of one column (3.4 in) or two (6.8 in), readable without colour. In a page, the colours of a figure
become the variables of style.css, so that it follows light and dark. matplotlib is imported where it is used.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup

from . import units
from .marks import tag, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE, PAPER = "#1b1d22", "#5a5f69", "#dfdfd9", "#fcfcfa"
CURVES = ("#2a6592", "#b4470b", "#17693f", "#7a5600")
GONE = CURVES[1]
VARIABLES = {
    INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper",
    CURVES[0]: "kept", GONE: "gone", CURVES[2]: "pass", CURVES[3]: "unsure",
}  # fmt: skip
MARKERS = "os^D"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "simprune", "text.parse_math": False, "text.color": INK,
    "font.size": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.frameon": False, "legend.handletextpad": 0.2,
    "axes.edgecolor": SOFT, "axes.labelcolor": INK, "axes.linewidth": 0.6, "xtick.color": SOFT, "ytick.color": SOFT,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
COLUMN, PAGE = 245.0, 490.0  # widths in points
MAGNIFIED = 1.7  # pixels of a page per point, so that text of 8 points is read without effort
NAMED_FROM, PRINTED_FROM = 6.5, 17.0  # points that a cell of a map needs to show its layer's name, its number
LEGEND: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "columnspacing": 0.9, "handlelength": 1.6,
}  # fmt: skip


@dataclass
class Chart:
    """A figure and what it shows in words; of a map also where its cells are, in points from the upper left corner."""

    figure: "Figure"
    label: str
    cell: float = 0.0
    left: float = 0.0
    top: float = 0.0
    titles: list[tuple[int, int, str]] = field(default_factory=list)  # row, column, text of a cell that is pointed at


@contextmanager
def _styled() -> Iterator[None]:
    """Drawing in our style, whatever the settings of matplotlib are, which are as before afterwards."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


@_styled()
def save(charts: Mapping[str, Chart], folder: Path) -> list[Path]:
    """Write charts by name as .svg and .png (300 dpi) and return the paths; the same charts give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for name in charts for ending in ("svg", "png")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        charts[path.stem].figure.savefig(path, dpi=300, metadata=metadata)
    return paths


@_styled()
def inline(chart: Chart, name: str, group: str = "") -> Markup:
    """A chart as SVG within a page, in the page's colours; `name` keeps its ids apart from those of other charts.

    Maps of a `group` are linked by the page's script, which reads cells out; others have a title on every cell.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        chart.figure.savefig(text, format="svg", transparent=True)
    drawn = text.getvalue()
    drawn = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]  # a page has its own element
    drawn = re.sub(r"(?s)<metadata>.*?</metadata>|<style.*?</style>", "", drawn, count=2)
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn)  # ids of groups, which every figure has alike and nothing refers to
    drawn = re.sub("|".join(VARIABLES), lambda colour: f"var(--{VARIABLES[colour[0]]})", drawn)
    side, wide = chart.cell, chart.figure.get_figwidth() > COLUMN / 72 + 0.1
    cells = (
        tag("rect", tag("title", text), class_="hover", x=chart.left + j * side, y=chart.top + i * side, width=side,
            height=side)
        for i, j, text in (() if group else chart.titles)
    )  # fmt: skip
    linked = {
        "tabindex": 0, "data_group": group, "data_cell": f"{side:.6g}", "data_left": f"{chart.left:g}",
        "data_top": f"{chart.top:g}",
    }  # fmt: skip
    width, height = (72 * inches for inches in chart.figure.get_size_inches())
    return tag(
        "svg", Markup(drawn), *cells, class_="chart" + (" linked" if group else "") + (" wide" if wide else ""),
        viewBox=f"0 0 {width:g} {height:g}", width=f"{MAGNIFIED * width:.0f}", role="img", aria_label=chart.label,
        **(linked if group else {}),
    )  # fmt: skip


@_styled()
def similarity_map(
    values: list[list], rows: Sequence[str], columns: Sequence[str], measure: str, *, across: str = "layer",
    reverse: bool = False, segments: Sequence[int] = (), gone: Iterable[str] = (), least: float = 0.0,
) -> Chart:  # fmt: skip
    """Layers against layers, numbered from 1; frames show segments of alike layers, struck names are `gone`.

    With `reverse` (for distances) small is bright. `least` is the least side of a cell in points: the map may then be
    wider than a column.
    """
    from matplotlib.patches import Rectangle

    chart = _cells(values, rows, len(columns), measure.replace("_", " "), reverse, gone, least)
    axes = chart.figure.axes[0]
    axes.set_ylabel("layer")
    axes.set_xlabel(across)
    edges = [i for i in range(len(segments) + 1) if i in (0, len(segments)) or segments[i] != segments[i - 1]]
    for start, stop in pairwise(edges):
        for colour, width in (("#111111", 2.2), ("#ffffff", 1.0)):  # a light line on a dark one is seen on every colour
            if stop - start > 1:
                corner, length = (start - 0.5, start - 0.5), stop - start
                axes.add_patch(Rectangle(corner, length, length, fill=False, ec=colour, lw=width, clip_on=False))
    chart.label = f"{measure} between {len(rows)} and {len(columns)} layer outputs; {chart.label}"
    chart.titles = [
        (i, j, f"{row} \N{MULTIPLICATION SIGN} {column}: {units.number(values[i][j])}")
        for (i, row), (j, column) in product(enumerate(rows), enumerate(columns))
    ]
    return chart


@_styled()
def window_map(window: Mapping[str, Any]) -> Chart:
    """Angular distance of every window of n consecutive blocks: n downwards, the first block to the right.

    A dot marks the best window of every length.
    """
    names, rows = window["blocks"], window["distances"]
    count = len(names)
    padded = [[*row, *[None] * (count - len(row))] for row in rows]
    chart = _cells(padded, [""] * count, count, "angular distance", True)
    axes = chart.figure.axes[0]
    for n, row in enumerate(rows):
        beside = np.argmin(row) + 0.32, n - 0.32  # of the number
        axes.plot(*beside, "o", mfc="#ffffff", mec="#111111", ms=3, mew=0.6)
    axes.set_xlabel("first block")
    axes.set_ylabel("blocks in the window")
    chart.label = f"Angular distance over windows of up to {count} blocks; {chart.label}"
    chart.titles = [
        (n, first, f"{n + 1} from {names[first]} to {names[first + n]}: {units.number(value)}")
        for n, row in enumerate(rows)
        for first, value in enumerate(row)
    ]
    return chart


def _cells(
    values: list[list], names: Sequence[str], width: int, label: str, reverse: bool, gone: Iterable[str] = (),
    least: float = 0.0,
) -> Chart:  # fmt: skip
    """Coloured cells with their colour scale below; the geometry is computed here, since the page's script needs it."""
    height, texts = len(names), [units.abbreviate(name, 22) for name in names]
    room = 4.3 * max(map(len, texts), default=0)
    if max(least, (COLUMN - 42 - room) / max(width, height, 1)) < NAMED_FROM:
        room = 0.0
    side = max(least, min(26.0, (COLUMN - 42 - room) / max(width, height, 1)))
    left, top = 34 + room, 28.0
    across, down = max(COLUMN / 2, left + side * width + 8), top + side * height + 40
    figure = _figure(across / 72, down / 72, layout=None)

    def area(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        return x / across, 1 - (y + h) / down, w / across, h / down

    axes = figure.add_axes(area(left, top, side * width, side * height))
    low, high = scale(values)
    grid = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)
    colours = "viridis_r" if reverse else "viridis"
    image = axes.imshow(grid, cmap=colours, vmin=low, vmax=high, interpolation="none", aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * side >= (9 if height < 100 else 12))
    axes.set_xticks(range(step - 1, width, step), [str(n) for n in range(step, width + 1, step)])
    shown = range(height) if room else range(step - 1, height, step)
    lost = [bool(name) and name in set(gone) for name in names]
    crosses = ["\N{MULTIPLICATION X} " if cross else "" for cross in lost]
    axes.set_yticks(shown, [crosses[i] + (f"{texts[i]}  {i + 1}" if room else f"{i + 1}") for i in shown])
    for i, text in zip(shown, axes.get_yticklabels(), strict=True):
        text.set_color(GONE if lost[i] else SOFT)
    if side >= PRINTED_FROM:
        for (i, j), value in np.ndenumerate(grid):
            if np.isfinite(value):
                share = (value - low) / (high - low)
                colour = "#111111" if (1 - share if reverse else share) > 0.45 else "#ffffff"
                axes.text(j, i, _two(value), size=6.5, color=colour, ha="center", va="center")
    bar = figure.add_axes(area(left, top + side * height + 8, min(across - left - 8, 140), 6))
    figure.colorbar(image, cax=bar, orientation="horizontal", label=label)
    marked = [low, (low + high) / 2, high]
    bar.set_xticks(marked, map(units.number, marked))
    bar.tick_params(length=2)
    ends = ("bright", "dark") if reverse else ("dark", "bright")
    colours = f"colours from {units.number(low)} ({ends[0]}) to {units.number(high)} ({ends[1]})"
    return Chart(figure, colours, side, left, top)


@_styled()
def profile(blocks: list[dict[str, Any]], ids: Sequence[str], title: str, offset: int = 0) -> Chart:
    """Every block's input against its output along depth, with intervals, and dashes for chance; below, its share of
    the multiply-adds. Colours and marks are numbered from `offset`."""
    width = max(COLUMN, min(PAGE, 70 + 20 * len(blocks)))
    figure = _figure(width / 72, 2.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x, known = np.arange(1, len(blocks) + 1), []
    for number, key in enumerate(ids):
        columns = {
            part: np.array([block["similarity"][key].get(part) for block in blocks], dtype=float)
            for part in ("value", "low", "high", "null")
        }
        known += [columns[part] for part in ("value", "low", "high")]
        colour, mark = CURVES[(number + offset) % 4], MARKERS[(number + offset) % 4]
        at = x + 0.14 * (number - (len(ids) - 1) / 2)
        top.vlines(at, columns["low"], columns["high"], color=colour, lw=1, alpha=0.6)
        top.plot(at, columns["value"], mark, color=colour, ms=3.5, label=key.replace("_", " "))
        top.plot(at, columns["null"], "_", color=colour, ms=4, alpha=0.7)
    numbers = np.concatenate(known)
    numbers = numbers[np.isfinite(numbers)]
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    steps = ticks(low if low > high / 2 else min(low, 0.0) if low < -0.05 else 0.0, high)  # zoomed where all are alike
    top.set_ylim(steps[0], steps[-1] + 0.03 * (steps[-1] - steps[0]))
    top.set_yticks(steps)
    top.grid(axis="y", color=RULE, lw=0.5)
    top.set_ylabel(title)
    top.legend(ncols=2 if width < 350 else 4, **LEGEND)
    bottom.bar(x, [100 * (block["share"] or 0) for block in blocks], color=SOFT, alpha=0.5, width=0.6)
    bottom.set_ylabel("% of macs")
    bottom.set_xlabel("block, by the number of its layer in the maps")
    changes = [i + 0.5 for i in range(1, len(blocks)) if blocks[i]["chain"] != blocks[i - 1]["chain"]]
    for axes, change in product((top, bottom), changes):
        axes.axvline(change, color=SOFT, lw=0.6, ls=":")
    step = next(step for step in (1, 2, 5, 10, 20, 50, 1000) if len(blocks) / step <= width / 16)
    bottom.set_xticks(x[step - 1 :: step], [str(block["point"] + 1) for block in blocks[step - 1 :: step]])
    bottom.set_xlim(0.5, len(blocks) + 0.5)
    return Chart(figure, f"{title} of the input and output of {len(blocks)} blocks along depth, and their cost")


@_styled()
def frontier(data: Mapping[str, Any], costs: Mapping[str, str], rates: Sequence[str]) -> Chart:
    """What is left (rates) against shares of the original's cost, one curve per kind of plan; dashed, the original."""
    figure = _figure(COLUMN / 72 * len(costs), 2.6 * len(rates))
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


@_styled()
def reliability(bins: list[dict[str, Any]], name: str) -> Chart:
    """Accuracy by confidence with 95 % intervals; the dashed diagonal is perfect calibration."""
    figure = _figure(COLUMN / 72, 3.2)
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


@_styled()
def dots(
    rows: Sequence[str], series: Mapping[str, Sequence[Sequence[float | None] | None]], label: str,
    chance: float | None = None,
) -> Chart:  # fmt: skip
    """Values with intervals, one row a name and one mark a series; a dashed line is what chance gives.

    A point is (value, low, high), where bounds may be None; None leaves the point out.
    """
    room = 4.2 * max(map(len, rows), default=0)
    width = max(COLUMN, min(PAGE, 0.7 * COLUMN + room))
    figure = _figure(width / 72, 0.8 + 0.1 * len(rows) * (1 + len(series) / 2))
    axes = figure.subplots()
    axes.grid(axis="x", color=RULE, lw=0.5)
    if chance is not None:
        axes.axvline(chance, color=INK, lw=0.8, ls="--")
    at = np.arange(len(rows))
    for number, (name, points) in enumerate(series.items()):
        shift = 0.7 * ((number + 0.5) / len(series) - 0.5)
        colour, mark = CURVES[number % 4], MARKERS[number % 4]
        known = [(y + shift, *point) for y, point in zip(at, points, strict=True) if point and point[0] is not None]
        for y, _, low, high in known:
            if low is not None and high is not None:
                axes.hlines(y, low, high, color=colour, lw=1, alpha=0.6)
        heights, values = (np.array([point[part] for point in known], dtype=float) for part in (0, 1))
        axes.plot(values, heights, mark, color=colour, ms=3.5, label=name)
    axes.set_yticks(at, rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    if len(series) > 1:
        # of the figure, above the names too, which leave the axes little width
        figure.legend(loc="outside upper right", ncols=min(len(series), 4 if sum(map(len, series)) < 40 else 2))
    return Chart(figure, f"{label} of {len(rows)} rows, {', '.join(series)}")


@_styled()
def lines(
    x: str, y: str, series: Mapping[str, Mapping[str, Sequence[float | None]]], log: bool = False,
    chance: float | None = None,
) -> Chart:  # fmt: skip
    """Curves of y against x, with a band where a series has `low` and `high`; a dashed line is what chance gives."""
    figure = _figure(COLUMN / 72, 2.6 + 0.16 * (len(series) // _beside(series)))
    axes = figure.subplots()
    axes.grid(color=RULE, lw=0.5)
    if chance is not None:
        axes.axhline(chance, color=INK, lw=0.8, ls="--")
    for number, (name, curve) in enumerate(series.items()):
        colour, line = CURVES[number % 4], ("-", "--", ":", "-.")[number // 4 % 4]
        values = {key: np.array(column, dtype=float) for key, column in curve.items()}
        axes.plot(values["x"], values["y"], MARKERS[number % 4] + line, color=colour, ms=3.5, lw=1.2, label=name)
        if "low" in values and "high" in values:
            axes.fill_between(values["x"], values["low"], values["high"], color=colour, alpha=0.15, lw=0)
    if log:
        axes.set_xscale("log")
    axes.set(xlabel=x, ylabel=y)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=_beside(series))
    return Chart(figure, f"{y} against {x}, {len(series)} curves: {', '.join(series)}")


@_styled()
def scatter(
    x: str, y: str, series: Mapping[str, Mapping[str, Sequence[float | None]]], diagonal: bool = False,
    log: bool = False,
) -> Chart:  # fmt: skip
    """Points of several series; with `diagonal`, a dashed line where both sides are equal."""
    figure = _figure(COLUMN / 72, 2.9 + 0.16 * (len(series) // _beside(series)))
    axes = figure.subplots()
    axes.grid(color=RULE, lw=0.5)
    both: list[float] = []
    for number, (name, points) in enumerate(series.items()):
        both_known = zip(points["x"], points["y"], strict=True)
        pairs = [(a, b) for a, b in both_known if a is not None and b is not None and (not log or min(a, b) > 0)]
        both += [value for pair in pairs for value in pair]
        colour, mark = CURVES[number % 4], MARKERS[number % 4]
        look = {"color": colour, "mfc": colour if number < 4 else PAPER, "ms": 2.5, "alpha": 0.6}
        axes.plot(*zip(*pairs, strict=True) if pairs else ([], []), mark, label=name, **look)
    if log:
        axes.set(xscale="log", yscale="log")
    if diagonal and both:
        axes.plot([min(both), max(both)], [min(both), max(both)], color=INK, lw=0.8, ls="--")
    axes.set(xlabel=x, ylabel=y)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=_beside(series))
    return Chart(figure, f"{y} against {x}, {len(both) // 2} points of {', '.join(series)}")


@_styled()
def training(epochs: Sequence[Mapping[str, Any]]) -> Chart:
    """Loss in training, and what epochs are judged by on held-out inputs; a ring marks the epoch that stays, at 0 where
    none does. The dashed line is the model before the training."""
    figure = _figure(COLUMN / 72, 3.0)
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


def _beside(names: Iterable[str]) -> int:
    """How many names of a legend stand beside each other in a column of a paper."""
    return 2 if max(map(len, names), default=0) <= 22 else 1


def scale(values: Iterable[Iterable[float | None]]) -> tuple[float, float]:
    """The range of a matrix, widened to tenths of its order of magnitude, never empty."""
    known = [value for row in values for value in row if value is not None] or [0.0, 1.0]
    steps = ticks(min(known), max(known))
    return steps[0], steps[-1]


def _two(value: float) -> str:
    """Two decimals without the leading zero, as tables of correlations are printed."""
    if abs(value) >= 10:
        return units.number(value, 2)
    return f"{value:.2f}".replace("-", units.MINUS).replace("0.", ".", 1)
