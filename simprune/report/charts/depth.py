"""Similarity along the depth of a network."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from ..marks import ticks
from .style import COLUMN, CURVES, LEGEND, MARKERS, PAGE, RULE, SOFT, Chart, empty_figure, styled


@styled()
def profile(blocks: list[dict[str, Any]], ids: Sequence[str], title: str, offset: int = 0) -> Chart:
    """Every block's input against its output along depth, with intervals, and dashes for chance; below, its share of
    the multiply-adds. Colours and marks are numbered from `offset`."""
    width = max(COLUMN, min(PAGE, 70 + 20 * len(blocks)))
    figure = empty_figure(width / 72, 2.8)
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
