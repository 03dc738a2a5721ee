"""The picture of a search for the smallest model: one row per budget tried, and how the bracket closes."""

from typing import Any

from markupsafe import Markup

from . import units
from .figures import picture, tag


def ladder(search: dict[str, Any]) -> Markup:
    """Share of the cost kept, from 0 to 1: bar, what was still open before the step; dot, the model that was made.

    Filled dots passed, rings did not. The first row is the original.
    """
    steps, left, width, pitch = search["steps"], 34, 420, 26
    bottom = 8 + pitch * len(steps)

    def at(share: float) -> float:
        return left + share * width

    marks = [
        part
        for tick in (0, 0.25, 0.5, 0.75, 1)
        for part in (
            tag("line", x1=at(tick), x2=at(tick), y1=4, y2=bottom, class_="grid"),
            tag("text", units.percent(tick, 0), x=at(tick), y=bottom + 17, class_="middle small"),
        )
    ]
    low, high = 0.0, 1.0
    for place, step in enumerate(steps):
        y, kept = 8 + pitch * (place + 0.5), step["kept"] or 0.0
        label = f"step {place}: {step['outcome']}, keeps {units.percent(step['kept'])} of the {search['kind']}"
        marks.append(tag("text", str(place), x=left - 14, y=y + 4, class_="end small"))
        marks.append(tag("rect", x=at(low), y=y - 4, width=max(2, at(high) - at(low)), height=8, rx=4, class_="track"))
        where = at(step["budget"] if step["kept"] is None else kept)
        kind = "final" if step["passed"] else "control"
        marks.append(tag("circle", tag("title", label), cx=where, cy=y, r=5.5, class_=kind))
        word = "chosen" if place == search["chosen"] else step["outcome"]
        marks.append(tag("text", word, x=left + width + 14, y=y + 4, class_="strong" if word == "chosen" else "small"))
        low, high = (low, min(high, kept)) if step["passed"] else (max(low, step["budget"]), high)
    described = f"{len(steps)} budgets tried; the bracket ends between {units.percent(low)} and {units.percent(high)}"
    return picture(left + width + 100, bottom + 24, described, *marks)
