"""Charts of any series of numbers: values with intervals, curves, and points."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .style import COLUMN, CURVES, INK, MARKERS, PAGE, PAPER, RULE, Chart, empty_figure, styled


@styled()
def dots(
    rows: Sequence[str], series: Mapping[str, Sequence[Sequence[float | None] | None]], label: str,
    chance: float | None = None,
) -> Chart:  # fmt: skip
    """Values with intervals, one row a name and one mark a series; a dashed line is what chance gives.

    A point is (value, low, high), where bounds may be None; None leaves the point out.
    """
    room = 4.2 * max(map(len, rows), default=0)
    width = max(COLUMN, min(PAGE, 0.7 * COLUMN + room))
    figure = empty_figure(width / 72, 0.8 + 0.1 * len(rows) * (1 + len(series) / 2))
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


@styled()
def lines(
    x: str, y: str, series: Mapping[str, Mapping[str, Sequence[float | None]]], log: bool = False,
    chance: float | None = None,
) -> Chart:  # fmt: skip
    """Curves of y against x, with a band where a series has `low` and `high`; a dashed line is what chance gives."""
    figure = empty_figure(COLUMN / 72, 2.6 + 0.16 * (len(series) // _beside(series)))
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


@styled()
def scatter(
    x: str, y: str, series: Mapping[str, Mapping[str, Sequence[float | None]]], diagonal: bool = False,
    log: bool = False,
) -> Chart:  # fmt: skip
    """Points of several series; with `diagonal`, a dashed line where both sides are equal."""
    figure = empty_figure(COLUMN / 72, 2.9 + 0.16 * (len(series) // _beside(series)))
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


def _beside(names: Iterable[str]) -> int:
    """How many names of a legend stand beside each other in a column of a paper."""
    return 2 if max(map(len, names), default=0) <= 22 else 1
