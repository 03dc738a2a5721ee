"""The pictures of the analysis page: linked maps, the profile along depth, windows. Inline SVG as in `figures`."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from . import units
from .figures import _bounds, _ticks, picture, tag

MARKS = ("circle", "square", "triangle", "diamond")
NAMES_FROM = 13  # pixels a row needs for its name
DIGITS_FROM = 26  # pixels a cell needs for its number


def similarity_map(
    names: Sequence[str], columns: Sequence[str], values: list[list], label: str, segments: Sequence[int] = (),
    group: str = "own", reverse: bool = False,
) -> Markup:  # fmt: skip
    """Rows against columns as viridis cells, numbered from 1; brackets on the left show segments.

    The page's script moves a cross-hair over all maps of a `group`; with `reverse` (for distances) small is bright.
    """
    rows, width = len(names), len(columns)
    cell = max(5.0, min(34.0, 430 / max(rows, width, 1)))
    named = cell >= NAMES_FROM
    labels = [units.abbreviate(name, 22) for name in names]
    left = 40 + (7.0 * max(map(len, labels), default=0) if named else 0)
    top = 24.0
    low, high = _bounds(values)
    small = "tiny" if cell < 18 else "small"
    step = next(step for step in (1, 2, 5, 10, 20, 50) if step * cell >= 15)
    marks: list[Any] = []
    for i in range(rows):
        y = top + i * cell
        if named:
            marks.append(tag("text", tag("title", names[i]), labels[i], x=left - 32, y=y + cell / 2 + 4,
                             class_=f"end mono {small}"))  # fmt: skip
        if (i + 1) % step == 0:
            marks.append(tag("text", i + 1, x=left - 9, y=y + cell / 2 + 4, class_=f"end {small}"))
    for j in range(width):
        if (j + 1) % step == 0:
            marks.append(tag("text", j + 1, x=left + (j + 0.5) * cell, y=top - 8, class_=f"middle {small}"))
    viridis = colormaps["viridis"]
    for i in range(rows):
        for j in range(width):
            value = values[i][j]
            share = 0.0 if value is None else (value - low) / (high - low)
            share = 1 - share if reverse else share
            colour = None if value is None else to_hex(viridis(share))
            x, y = left + j * cell, top + i * cell
            marks.append(tag("rect", x=x, y=y, width=cell, height=cell, fill=colour,
                             class_="cell" if cell >= 10 else "dense"))  # fmt: skip
            if cell >= DIGITS_FROM and value is not None:
                ground = "on-bright" if share > 0.45 else "on-dark"
                text = f"{value:.2f}".replace("-", units.MINUS).replace("0.", ".", 1)
                marks.append(tag("text", text, x=x + cell / 2, y=y + cell / 2 + 4, class_=f"value {ground}"))
    for start, stop in _runs(segments):
        side = (stop - start) * cell
        for kind in ("segment under", "segment"):  # a light line on a dark one is seen on every colour
            marks.append(tag("rect", x=left + start * cell, y=top + start * cell, width=side, height=side, class_=kind))
    for name in ("across", "down", "spot"):
        marks.append(tag("rect", class_=name, style="display:none"))
    made = picture(left + width * cell + 4, top + rows * cell + 4, label, *marks, class_="heat linked")
    data = f'<svg tabindex="0" data-group="{group}" data-left="{left:g}" data-top="{top:g}" data-cell="{cell:.6g}"'
    return Markup(str(made).replace("<svg", data, 1))


def scale(values: list[list], key: str, reverse: bool = False) -> Markup:
    """The colour scale of `similarity_map`; `key` keeps its id apart from those of other scales."""
    low, high = _bounds(values)
    viridis, width, steps = colormaps["viridis"], 200, 8
    shares = [i / steps for i in range(steps + 1)]
    stops = [tag("stop", offset=x, stop_color=to_hex(viridis(1 - x if reverse else x))) for x in shares]
    texts = [
        tag("text", units.number(value), x=4 + share * width, y=30, class_=f"{place} small")
        for value, share, place in ((low, 0, ""), ((low + high) / 2, 0.5, "middle"), (high, 1, "end"))
    ]
    bar = tag("rect", x=4, y=4, width=width, height=10, rx=2, fill=f"url(#{key})", class_="axis")
    ends = ("bright", "dark") if reverse else ("dark", "bright")
    label = f"Colour scale from {units.number(low)} ({ends[0]}) to {units.number(high)} ({ends[1]})"
    return picture(width + 8, 36, label, tag("linearGradient", *stops, id=key), bar, *texts)


def profile(blocks: list[dict], ids: Sequence[str], offset: int = 0) -> Markup:
    """Every block's input against its output along depth: marks with intervals, dashes for chance, and below each
    block's share of the multiply-adds. Marks are numbered from `offset`."""
    if not blocks:
        return Markup("")
    left, height, below = 46.0, 190.0, 54.0
    pitch = max(14.0, min(64.0, 900 / len(blocks)))
    width = pitch * len(blocks)
    entries = [[block["similarity"][key] for key in ids] for block in blocks]
    known = [
        entry[part]
        for row in entries
        for entry in row
        for part in ("value", "low", "high")
        if entry.get(part) is not None
    ] or [0.0, 1.0]
    low, high = min(known), max(known)
    ticks = _ticks(low if low > high / 2 else min(low, 0.0) if low < -0.05 else 0.0, high)  # zoomed where all are alike

    def at(value: float) -> float:
        return 10 + height * (1 - (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0]))

    marks: list[Any] = []
    for tick in ticks:
        marks += [tag("line", x1=left, x2=left + width, y1=at(tick), y2=at(tick), class_="grid"),
                  tag("text", units.number(tick), x=left - 8, y=at(tick) + 4, class_="end small")]  # fmt: skip
    most = max([block["share"] or 0 for block in blocks] + [1e-9])
    base = 10 + height + below
    step = next(step for step in (1, 2, 5, 10, 20) if step * pitch >= 20)
    for place, (block, row) in enumerate(zip(blocks, entries, strict=True)):
        middle = left + (place + 0.5) * pitch
        if place and block["chain"] != blocks[place - 1]["chain"]:
            marks.append(tag("line", x1=middle - pitch / 2, x2=middle - pitch / 2, y1=10, y2=base, class_="break"))
        for number, (key, entry) in enumerate(zip(ids, row, strict=True)):
            x = middle + (number - (len(ids) - 1) / 2) * min(9.0, pitch / (len(ids) + 0.5))
            if entry["value"] is None:
                continue
            if entry.get("null") is not None and ticks[0] <= entry["null"] <= ticks[-1]:
                marks.append(
                    tag("line", x1=x - 4, x2=x + 4, y1=at(entry["null"]), y2=at(entry["null"]), class_="chance")
                )
            if entry.get("low") is not None and entry.get("high") is not None:
                marks.append(
                    tag("line", x1=x, x2=x, y1=at(entry["low"]), y2=at(entry["high"]), class_=f"whisker s{number}")
                )
            title = tag("title", f"{block['name']}: {key} {units.number(entry['value'])}")
            marks.append(_mark(MARKS[(number + offset) % 4], x, at(entry["value"]), f"mark s{number + offset}", title))
        share = block["share"] or 0
        tall = max(1.0, share / most * (below - 16))
        title = tag("title", f"{block['name']}: {units.percent(share)} of the multiply-adds")
        marks.append(
            tag("rect", title, x=middle - pitch * 0.3, y=base - tall, width=pitch * 0.6, height=tall, class_="share")
        )
        if (place + 1) % step == 0 or step == 1:
            marks.append(tag("text", block["point"] + 1, x=middle, y=base + 16, class_="middle small"))
    marks += [tag("line", x1=left, x2=left + width, y1=base, y2=base, class_="axis"),
              tag("text", units.percent(most, 0), x=left - 8, y=base - below + 22, class_="end small")]  # fmt: skip
    label = f"Similarity of the input and output of {len(blocks)} blocks along depth, and their share of the cost"
    return picture(left + width + 8, base + 24, label, *marks, class_="profile")


def key(number: int) -> Markup:
    """The mark of the n-th measure in `profile`."""
    return picture(14, 14, "", _mark(MARKS[number % 4], 7, 7, f"mark s{number}"), class_="keymark")


def window_map(window: dict) -> Markup:
    """Angular distance of every window of n consecutive blocks: n downwards, first block to the right."""
    names, rows = window["blocks"], window["distances"]
    count = len(names)
    cell = max(8.0, min(30.0, 430 / count))
    left, top = 34.0, 22.0
    low, high = _bounds(rows)
    viridis = colormaps["viridis"]
    step = next(step for step in (1, 2, 5, 10, 20) if step * cell >= 16)
    marks: list[Any] = []
    for n, row in enumerate(rows, 1):
        if n % step == 0 or n == 1:
            marks.append(tag("text", n, x=left - 8, y=top + (n - 0.5) * cell + 4, class_="end small"))
        least = min(row)
        for first, value in enumerate(row):
            title = tag("title", f"{n} from {names[first]} to {names[first + n - 1]}: {units.number(value)}")
            colour = to_hex(viridis(1 - (value - low) / (high - low)))
            x, y = left + first * cell, top + (n - 1) * cell
            marks.append(tag("rect", title, x=x, y=y, width=cell, height=cell, fill=colour, class_="cell"))
            if value == least:
                marks.append(tag("circle", cx=x + cell / 2, cy=y + cell / 2, r=min(4.0, cell / 4), class_="best"))
    for first in range(count):
        if (first + 1) % step == 0 or first == 0:
            marks.append(tag("text", first + 1, x=left + (first + 0.5) * cell, y=top - 7, class_="middle small"))
    label = f"Angular distance over windows of up to {count} blocks, from {units.number(low)} to {units.number(high)}"
    return picture(left + count * cell + 4, top + count * cell + 4, label, *marks, class_="heat")


def _mark(shape: str, x: float, y: float, class_: str, title: Markup | None = None) -> Markup:
    if shape == "circle":
        return tag("circle", title, cx=x, cy=y, r=4.5, class_=class_)
    points = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "triangle": ((0, -5), (5, 4), (-5, 4)),
        "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
    }[shape]
    return tag("path", title, d="M" + "L".join(f"{x + a:.2f} {y + b:.2f}" for a, b in points) + "Z", class_=class_)


def _runs(segments: Sequence[int]) -> list[tuple[int, int]]:
    """[start, stop) of equal neighbours that are longer than one."""
    runs, start = [], 0
    for place in range(1, len(segments) + 1):
        if place == len(segments) or segments[place] != segments[start]:
            if place - start > 1:
                runs.append((start, place))
            start = place
    return runs
