"""Figures of an analysis for papers: matplotlib, as SVG and PNG, in column widths, readable without colour."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "svg.fonttype": "none", "svg.hashsalt": "simprune", "legend.frameon": False,
}  # fmt: skip
COLOURS = ("#2a6592", "#b4470b", "#17693f", "#7a5600")
MARKERS = "os^D"


def save_figures(data: dict[str, Any], folder: Path) -> list[Path]:
    """Write every figure of an analysis as .svg and .png (300 dpi) and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(data):
            for ending in ("svg", "png"):
                path = folder / f"{name}.{ending}"
                figure.savefig(path, dpi=300, metadata={"Date": None} if ending == "svg" else None)
                written.append(path)
    return written


def _figures(data: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    similar = {each["measure"]: each["larger_is_more_similar"] for each in data["similarity"]}
    segments = data["segments"]["of"]
    for each in data["similarity"]:
        name = each["measure"]
        yield f"similarity_{name}", _map(each["values"], name, "layer", segments, similar[name])
    for each in (data.get("other") or {}).get("similarity", []):
        name = each["measure"]
        yield f"other_{name}", _map(each["values"], name, "layer of the other", [], similar[name])
    for title, kind in (("similarity", True), ("distance", False)):
        names = [name for name, larger in similar.items() if larger == kind]
        if data["blocks"] and names:
            yield f"profile_{title}", _profile(data["blocks"], names, title)
    longest = max(data["windows"], key=lambda window: len(window["blocks"]), default=None)
    if longest is not None and len(longest["blocks"]) > 1:
        yield "windows", _windows(longest)


def _map(values: list[list], measure: str, across: str, segments: list[int], bright_is_large: bool) -> Figure:
    figure = Figure(figsize=(3.4, 2.9), layout="constrained")
    axes = figure.subplots()
    grid = np.array(values, dtype=float)
    image = axes.imshow(grid, cmap="viridis" if bright_is_large else "viridis_r", interpolation="nearest")
    _number(axes, grid.shape)
    axes.set_xlabel(across)
    axes.set_ylabel("layer")
    edges = np.flatnonzero(np.diff(segments)) + 0.5 if segments else []
    starts = [-0.5, *edges]
    for start, stop in zip(starts, [*edges, len(segments) - 0.5], strict=True) if segments else ():
        if stop - start > 1:
            axes.add_patch(Rectangle((start, start), stop - start, stop - start, fill=False, ec="w", lw=0.8))
    figure.colorbar(image, ax=axes, label=measure.replace("_", " "), shrink=0.9)
    return figure


def _number(axes: Axes, shape: tuple[int, ...]) -> None:
    for axis, count in ((axes.yaxis, shape[0]), (axes.xaxis, shape[1])):
        step = next(step for step in (1, 2, 5, 10, 20, 50) if count / step <= 12)
        places = np.arange(step - 1, count, step)
        axis.set_ticks(places, labels=[str(place + 1) for place in places])


def _profile(blocks: list[dict[str, Any]], names: list[str], title: str) -> Figure:
    figure = Figure(figsize=(6.8, 2.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x = np.arange(1, len(blocks) + 1)
    for number, name in enumerate(names):
        found = [block["similarity"][name] for block in blocks]
        y = np.array([entry["value"] for entry in found], dtype=float)
        colour, place = COLOURS[number % 4], x + 0.12 * (number - (len(names) - 1) / 2)
        if all(entry.get("low") is not None for entry in found):
            low, high = (np.array([entry[key] for entry in found], dtype=float) for key in ("low", "high"))
            top.vlines(place, low, high, color=colour, lw=1, alpha=0.6)
        top.plot(place, y, MARKERS[number % 4], color=colour, ms=3.5, label=name.replace("_", " "))
        if all(entry.get("null") is not None for entry in found):
            top.plot(place, [entry["null"] for entry in found], "_", color=colour, ms=4, alpha=0.7)
    top.set_ylabel(title)
    top.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, handletextpad=0.2)
    bottom.bar(x, [100 * block["share"] for block in blocks], color="0.6", width=0.7)
    bottom.set_ylabel("% of macs")
    bottom.set_xlabel("block")
    for place in range(1, len(blocks)):
        if blocks[place]["chain"] != blocks[place - 1]["chain"]:
            for axes in (top, bottom):
                axes.axvline(place + 0.5, color="0.6", lw=0.6, ls=":")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    step = next(step for step in (1, 2, 5, 10, 20) if len(blocks) / step <= 30)
    bottom.set_xticks(x[step - 1 :: step])
    return figure


def _windows(window: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(3.4, 2.9), layout="constrained")
    axes = figure.subplots()
    count = len(window["blocks"])
    grid = np.full((count, count), np.nan)
    for n, row in enumerate(window["distances"]):
        grid[n, : len(row)] = row
    image = axes.imshow(grid, cmap="viridis_r", interpolation="nearest")
    for n, row in enumerate(window["distances"]):
        axes.plot(int(np.argmin(row)), n, "o", mfc="w", mec="k", ms=2.5, mew=0.5)
    _number(axes, grid.shape)
    axes.set_xlabel("first block")
    axes.set_ylabel("blocks in the window")
    figure.colorbar(image, ax=axes, label="angular distance", shrink=0.9)
    return figure
