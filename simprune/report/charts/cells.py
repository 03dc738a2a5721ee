"""Coloured cells with their colour scale: the geometry of all maps."""

from collections.abc import Iterable, Sequence

import numpy as np

from .. import units
from ..marks import ticks
from .style import COLUMN, GONE, SOFT, Chart, empty_figure

NAMED_FROM, PRINTED_FROM = 6.5, 17.0  # points that a cell of a map needs to show its layer's name, its number


def coloured_cells(
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
    figure = empty_figure(across / 72, down / 72, layout=None)

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
