"""Charts as files for papers, and as SVG within a page, whose colours follow light and dark."""

import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from markupsafe import Markup

from simprune.core.store import write_whole

from ..marks import tag
from .style import COLUMN, VARIABLES, Chart, styled

MAGNIFIED = 1.7  # pixels of a page per point, so that text of 8 points is read without effort


@styled()
def save(charts: Mapping[str, Chart], folder: Path) -> list[Path]:
    """Write charts by name as .svg and .png (300 dpi) and return the paths; the same charts give the same bytes."""
    paths = [folder / f"{name}.{ending}" for name in charts for ending in ("svg", "png")]
    for path in paths:
        ending = path.suffix[1:]
        drawn = partial(charts[path.stem].figure.savefig, dpi=300, format=ending)
        write_whole(path, partial(drawn, metadata={"Date": None} if ending == "svg" else None))
    return paths


@styled()
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
