"""Maps: layers against layers, and windows of blocks."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np

from .. import units
from .cells import coloured_cells
from .style import Chart, styled


@styled()
def similarity_map(
    values: list[list], rows: Sequence[str], columns: Sequence[str], measure: str, *, across: str = "layer",
    reverse: bool = False, segments: Sequence[int] = (), gone: Iterable[str] = (), least: float = 0.0,
) -> Chart:  # fmt: skip
    """Layers against layers, numbered from 1; frames show segments of alike layers, struck names are `gone`.

    With `reverse` (for distances) small is bright. `least` is the least side of a cell in points: the map may then be
    wider than a column.
    """
    from matplotlib.patches import Rectangle

    chart = coloured_cells(values, rows, len(columns), measure.replace("_", " "), reverse, gone, least)
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


@styled()
def window_map(window: Mapping[str, Any]) -> Chart:
    """Angular distance of every window of n consecutive blocks: n downwards, the first block to the right.

    A dot marks the best window of every length.
    """
    names, rows = window["blocks"], window["distances"]
    count = len(names)
    padded = [[*row, *[None] * (count - len(row))] for row in rows]
    chart = coloured_cells(padded, [""] * count, count, "angular distance", True)
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
