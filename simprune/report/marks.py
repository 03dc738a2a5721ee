"""Small pictures within text and tables: plain elements that style.css lays out, every text and attribute escaped."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from . import units

BARS = 48  # bars that are drawn at most


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
    return Markup(f"<{name}{shown}>{Markup('').join(child for child in children if child is not None)}</{name}>")


def track(label: str, *marks: tuple, low: float = 0.0, high: float = 1.0, outcome: str = "") -> Markup:
    """A line from `low` to `high` with marks on it: (class, value) or (class, start, stop); a value None is left out.

    >>> print(track("half", ("dot", 0.5)))
    <span class="track" role="img" aria-label="half" title="half"><i class="dot" style="left:50%"></i></span>
    """
    drawn = []
    for kind, *ends in marks:
        if None in ends:
            continue
        first, *last = sorted(_percent(value, low, high) for value in ends)
        width = f";width:{_short(last[0] - first)}%" if last else ""
        drawn.append(tag("i", class_=kind, style=f"left:{_short(first)}%{width}"))
    return tag("span", *drawn, class_=f"track {outcome}".strip(), role="img", aria_label=label, title=label)


def share(value: float | None, kind: str = "kept", whole: float = 1.0, label: str = "") -> Markup:
    """A value between 0 and `whole` as a bar."""
    return track(label or units.number(value), (f"bar {kind}", 0.0, value), high=whole)


def dots(before: float | None, after: float | None, label: str, low: float = 0.0, high: float = 1.0) -> Markup:
    """Two values: a ring before and a dot after, and the way between them."""
    return track(label, ("way", before, after), ("ring", before), ("dot", after), low=low, high=high)


def gate(result: Mapping[str, Any]) -> Markup:
    """A gate: its value (dot), bounds (bar; open where there is none) and limit (tall tick)."""
    value, lower, upper, limit = (result.get(key) for key in ("value", "lower", "upper", "limit"))
    known = [0.0, *(x for x in (value, lower, upper, limit) if x is not None)]
    room = 0.06 * ((max(known) - min(known)) or 1.0)
    low, high = min(known) - room, max(known) + room
    bar = ("bounds", low if lower is None else lower, high if upper is None else upper)
    label = f"value {units.number(value)}, bounds {units.bounds(lower, upper)}, limit {units.number(limit)}"
    marks = ([] if lower is upper is None else [bar]) + [("limit", limit), ("dot", value)]
    return track(label, *marks, low=low, high=high, outcome=str(result.get("outcome")))


def bars(
    values: Sequence[float | None], label: str, removed: Iterable[int] = (), ordered: bool = True, whole: float = 1.0
) -> Markup:
    """One upright bar per value from 0 to `whole`, the largest first if `ordered`; of many, some at equal steps."""
    gone, order = set(removed), list(range(len(values)))
    if ordered:
        order.sort(key=lambda index: -(values[index] or 0))
    known = [value for value in values if value is not None]
    if known and ordered:
        label += f": {units.number(max(known), 2)} down to {units.number(min(known), 2)}"
    drawn = [
        tag(
            "i",
            class_="removed" if index in gone else "kept",
            style=f"height:{_short(_percent(values[index] or 0.0, 0.0, whole))}%",
        )
        for index in order[:: math.ceil(len(order) / BARS) or 1]
    ]
    return tag("span", *drawn, class_="bars", role="img", aria_label=label, title=label)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers at equal steps that enclose [low, high].

    >>> ticks(0.913, 0.982)
    [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * about >= span)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _percent(value: float, low: float, high: float) -> float:
    """The share of the way from `low` to `high` in percent, from 0 to 100."""
    return 100 * min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))


def _short(value: Any) -> Any:
    """Numbers with at most two decimals, everything else unchanged."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
