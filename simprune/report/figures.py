"""The pictures of the report: inline SVG, styled by style.css, every text and attribute escaped.

Names may come from anywhere, so SVG is only ever built through `tag`, never by formatting strings.
"""

import math

from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.colors import to_hex

from . import units


def tag(name: str, *children, **attributes) -> Markup:
    """One element; `class_` and `font_size` become `class` and `font-size`, None leaves an attribute out.

    >>> print(tag("text", "a < b", class_="axis", x=1.50))
    <text class="axis" x="1.5">a &lt; b</text>
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(escape(child) for child in children if child is not None)
    return Markup(f"<{name}{shown}>{body}</{name}>" if body else f"<{name}{shown}/>")


def picture(width: float, height: float, label: str, *children, class_="") -> Markup:
    """An SVG image of the given size in pixels that shrinks with the page and says what it shows."""
    return tag(
        "svg", *children, class_=class_ or None, viewBox=f"0 0 {_short(width)} {_short(height)}",
        width=width, height=height, role="img", aria_label=label,
    )  # fmt: skip


def kept_bars(rows: list[tuple[str, float | None, str]]) -> Markup:
    """Horizontal bars of what is kept: (label, ratio to the original, text); the track is the original."""
    known = [(label, ratio, text) for label, ratio, text in rows if ratio is not None]
    left, width, pitch = 104, 250, 38
    longest = max([1.0, *(ratio for _, ratio, _ in known)])
    marks = []
    for index, (label, ratio, text) in enumerate(known):
        y, scale = 8 + index * pitch, width / longest
        marks += [
            tag("text", label, x=left - 10, y=y + 15, class_="end"),
            tag("rect", x=left, y=y, width=scale, height=20, rx=3, class_="track"),
            tag("rect", tag("title", f"{label}: {text}"), x=left, y=y, width=max(2, ratio * scale),
                height=20, rx=3, class_="kept"),
            tag("text", units.percent(ratio, 0), x=left + width + 10, y=y + 15, class_="strong"),
        ]  # fmt: skip
    described = "; ".join(f"{label} {units.percent(ratio, 0)}" for label, ratio, _ in known)
    return picture(left + width + 62, 8 + pitch * len(known), f"Kept of the original: {described}", *marks)


def accuracy_dots(stages: list[dict]) -> Markup:
    """Accuracy at every stage on one zoomed axis; the dashed line is the original."""
    rows = [(stage["name"], stage["accuracy"]) for stage in stages if stage.get("accuracy") is not None]
    ticks = _ticks(min(value for _, value in rows), max(value for _, value in rows))
    left, width, pitch = 114, 240, 32
    bottom = 8 + pitch * len(rows)

    def at(value):
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * width

    marks = [
        part
        for tick in ticks
        for part in (
            tag("line", x1=at(tick), x2=at(tick), y1=4, y2=bottom, class_="grid"),
            tag("text", units.percent(tick, 0), x=at(tick), y=bottom + 17, class_="middle small"),
        )
    ]
    reference = next((value for name, value in rows if name == "original"), None)
    if reference is not None:
        marks.append(tag("line", x1=at(reference), x2=at(reference), y1=4, y2=bottom, class_="reference"))
    for index, (name, value) in enumerate(rows):
        y = 8 + pitch * (index + 0.5)
        kind = "control" if name == "random control" else "final"
        title = tag("title", f"{name}: {units.percent(value)}")
        marks += [
            tag("text", units.shorten(name, 16), x=left - 12, y=y + 4, class_="end"),
            tag("line", x1=left, x2=at(value), y1=y, y2=y, class_=f"stem {kind}"),
            tag("circle", title, cx=at(value), cy=y, r=5.5, class_=kind),
            tag("text", units.percent(value), x=left + width + 16, y=y + 4, class_="strong"),
        ]
    described = "; ".join(f"{name} {units.percent(value)}" for name, value in rows)
    return picture(left + width + 66, bottom + 24, f"Accuracy by stage: {described}", *marks)


def channel_strip(of: int, removed) -> Markup:
    """One little square per channel in original order: filled is kept, hollow (flat when tiny) is removed.

    A run of equal squares is a single dashed line (one dash, one square), so wide layers stay small.
    """
    pitch, per_row = (10, 32) if of <= 128 else (5, 64)
    gone, side = set(removed), pitch - 2
    paths = {"kept": "", "removed": ""}
    for start in range(0, of, per_row):
        y, stop = (start // per_row) * pitch + pitch / 2, min(start + per_row, of)
        run = start
        for index in range(start + 1, stop + 1):
            if index == stop or (index in gone) != (run in gone):
                kind = "removed" if run in gone else "kept"
                paths[kind] += f"M{(run - start) * pitch + 1} {_short(y)}h{(index - run) * pitch - 2}"
                run = index
    thickness = {"kept": side, "removed": side if side > 3 else 1.2}  # colour is never the only sign
    squares = [
        tag("path", d=path, class_=f"{kind} squares", stroke_width=thickness[kind], stroke_dasharray=f"{side} 2")
        for kind, path in paths.items() if path
    ]  # fmt: skip
    if paths["removed"] and side > 3:  # a smaller square of the page's colour on top makes it hollow
        squares.append(
            tag("path", d=paths["removed"], class_="hollow squares", stroke_width=side - 3,
                stroke_dasharray=f"{side - 3} 5", transform="translate(1.5 0)")
        )  # fmt: skip
    label = f"{len(gone)} of {of} channels removed" + (f": {units.ranges(gone)}" if gone else "")
    height = math.ceil(of / per_row) * pitch
    return picture(min(of, per_row) * pitch, height, label, tag("title", label), *squares, class_="strip")


def redundancy_bars(redundancy: list, removed) -> Markup:
    """One bar per channel, height 0 to 1, most redundant first; removed channels in the second colour."""
    width, height, gone = 150, 44, set(removed)
    order = sorted(range(len(redundancy)), key=lambda i: -(redundancy[i] or 0))
    step = width / max(len(order), 1)
    paths = {"kept": "", "removed": ""}
    for place, index in enumerate(order):
        tall = max(1.0, min(1.0, max(0.0, redundancy[index] or 0)) * height)
        x = _short((place + 0.5) * step)
        paths["removed" if index in gone else "kept"] += f"M{x} {height}v-{_short(tall)}"
    known = [value for value in redundancy if value is not None]
    label = "redundancy of each channel, most redundant first"
    if known:
        label += f": {units.number(max(known), 2)} down to {units.number(min(known), 2)}"
    bars = [
        tag("path", d=path, class_=f"{kind} squares", stroke_width=step * 0.78)
        for kind, path in paths.items() if path
    ]  # fmt: skip
    rule = tag("line", x1=0, x2=width, y1=height, y2=height, class_="axis")
    return picture(width, height + 1, label, tag("title", label), *bars, rule)


def share_bar(value: float | None, removed: bool, width: int = 120) -> Markup:
    """A value between 0 and 1 as a small bar inside a table."""
    filled = min(1.0, max(0.0, value or 0.0)) * width
    return picture(
        width, 10, units.number(value), tag("rect", width=width, height=10, rx=2, class_="track"),
        tag("rect", width=filled, height=10, rx=2, class_="removed" if removed else "kept"),
    )  # fmt: skip


def interval(gate: dict) -> Markup:
    """A gate: its value (dot), bounds (bar; open where there is none) and limit (tall tick)."""
    value, lower, upper, limit = (gate.get(key) for key in ("value", "lower", "upper", "limit"))
    known = [0.0, *(x for x in (value, lower, upper, limit) if x is not None)]
    low, high = min(known), max(known)
    width, margin = 220, 8
    scale = (width - 2 * margin) / ((high - low) * 1.12 or 1.0)

    def at(x):
        return margin + (x - low) * scale

    marks = [tag("line", x1=0, x2=width, y1=15, y2=15, class_="axis")]
    if lower is not None or upper is not None:
        start, stop = 0 if lower is None else at(lower), width if upper is None else at(upper)
        marks.append(tag("rect", x=start, y=11, width=max(3, stop - start), height=8, rx=4, class_="bounds"))
    if limit is not None:
        marks.append(tag("line", x1=at(limit), x2=at(limit), y1=2, y2=28, class_="limit"))
    if value is not None:
        marks.append(tag("circle", cx=at(value), cy=15, r=4.5, class_="dot"))
    label = f"value {units.number(value)}, bounds {units.bounds(lower, upper)}, limit {units.number(limit)}"
    return picture(width, 30, label, tag("title", label), *marks, class_=f"gate {gate.get('outcome')}")


def dumbbell(before: float | None, after: float | None, longest: float) -> Markup:
    """Error before (hollow) and after (filled) a repair, on a scale from 0 to `longest`."""
    width, margin = 220, 7
    scale = (width - 2 * margin) / (longest or 1.0)
    marks = [tag("line", x1=0, x2=width, y1=8, y2=8, class_="grid")]
    if before is not None and after is not None:
        ends = {"x1": margin + before * scale, "x2": margin + after * scale}
        marks.append(tag("line", **ends, y1=8, y2=8, class_="gain"))
    for value, kind in ((before, "before"), (after, "after")):
        if value is not None:
            marks.append(tag("circle", cx=margin + value * scale, cy=8, r=5, class_=kind))
    return picture(width, 16, f"error {units.number(before)} before, {units.number(after)} after", *marks)


def loss_curve(losses: list) -> Markup:
    """The training loss by epoch, from zero."""
    width, height, left = 300, 90, 8
    top = max((loss for loss in losses if loss is not None), default=0.0) or 1.0
    step = (width - 2 * left) / max(len(losses) - 1, 1)
    places = [
        (left + index * step, 8 + (1 - loss / top) * (height - 8))
        for index, loss in enumerate(losses) if loss is not None
    ]  # fmt: skip
    line = " ".join(f"{_short(x)},{_short(y)}" for x, y in places)
    dots = [tag("circle", cx=x, cy=y, r=3, class_="final") for x, y in places] if len(places) <= 40 else []
    described = f"Loss from {units.number(losses[0])} to {units.number(losses[-1])} in {len(losses)} epochs"
    rule = tag("line", x1=0, x2=width, y1=height, y2=height, class_="axis")
    return picture(width, height + 4, described, rule, tag("polyline", points=line, class_="curve"), *dots)


def heatmap(names: list[str], values: list[list], removed) -> Markup:
    """An L x L matrix in the viridis map; a cell's title is its pair; removed layers are marked on both axes.

    Columns carry the rows' numbers instead of turned names, which stays readable at any length.
    """
    gone, size = set(removed), len(names)
    cell = max(12, min(44, 760 // max(size, 1)))
    labels = [units.abbreviate(name, 30) for name in names]
    left, top = 52 + 7.3 * max(map(len, labels), default=0), 22  # 7.3 px a letter, the row number, a cross
    low, high = _bounds(values)
    viridis, crowded = colormaps["viridis"], "tiny" if cell < 18 else "small"
    marks = []
    for i, name in enumerate(names):
        y, mark = top + i * cell, "removed" if name in gone else ""
        base = y + cell / 2 + 4
        cross = tag("tspan", "\N{MULTIPLICATION X} ") if name in gone else None
        marks += [
            tag("text", tag("title", name), cross, tag("tspan", labels[i], class_="name"), x=left - 32, y=base,
                class_=f"end mono {crowded} {mark}"),
            tag("text", i + 1, x=left - 8, y=base, class_=f"end {crowded} {mark}"),
        ]  # fmt: skip
        if size < 100 or (i + 1) % 5 == 0:
            x = left + (i + 0.5) * cell
            marks.append(tag("text", i + 1, x=x, y=top - 8, class_=f"middle {crowded} {mark}"))
        for j, other in enumerate(names):
            value, x = values[i][j], left + j * cell
            share = 0.0 if value is None else (value - low) / (high - low)
            colour = None if value is None else to_hex(viridis(share))
            title = tag("title", f"{name} \N{MULTIPLICATION SIGN} {other}: {units.number(value)}")
            marks.append(tag("rect", title, x=x, y=y, width=cell, height=cell, fill=colour, class_="cell"))
            if cell >= 26:  # there is room to print the number itself
                ground = "" if value is None else "on-bright" if share > 0.45 else "on-dark"
                marks.append(tag("text", _cell_text(value), x=x + cell / 2, y=base, class_=f"value {ground}"))
    label = f"Similarity of {size} layer outputs, from {units.number(low)} to {units.number(high)}"
    return picture(left + size * cell + 4, top + size * cell + 4, label, *marks, class_="heat")


def legend(values: list[list]) -> Markup:
    """The colour scale of `heatmap` for the same values."""
    low, high = _bounds(values)
    viridis, width, steps = colormaps["viridis"], 240, 8
    stops = [tag("stop", offset=i / steps, stop_color=to_hex(viridis(i / steps))) for i in range(steps + 1)]
    bar = tag("rect", x=4, y=4, width=width, height=12, rx=2, fill="url(#similarity-scale)", class_="axis")
    texts = [
        tag("text", units.number(low), x=4, y=32, class_="small"),
        tag("text", units.number((low + high) / 2), x=4 + width / 2, y=32, class_="middle small"),
        tag("text", units.number(high), x=4 + width, y=32, class_="end small"),
    ]
    label = f"Colour scale from {units.number(low)} (dark) to {units.number(high)} (bright)"
    return picture(width + 8, 38, label, tag("linearGradient", *stops, id="similarity-scale"), bar, *texts)


def _cell_text(value: float | None) -> str:
    """Two decimals without the leading zero, as tables of correlations are printed."""
    if value is None or abs(value) >= 10:
        return units.number(value, 2)
    return f"{value:.2f}".replace("-", units.MINUS).replace("0.", ".", 1)


def _bounds(values) -> tuple[float, float]:
    """The range of a matrix, widened to tenths of its order of magnitude, never empty."""
    known = [value for row in values for value in row if value is not None] or [0.0, 1.0]
    ticks = _ticks(min(known), max(known))
    return ticks[0], ticks[-1]


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers at equal steps that enclose [low, high].

    >>> _ticks(0.913, 0.982)
    [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * about >= span)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _short(value):
    """Numbers with at most two decimals, everything else unchanged."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
