"""What all charts share: colours, sizes and fonts, readable without colour, for a column (3.4 in) or two of a paper."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, RULE, PAPER = "#1b1d22", "#5a5f69", "#dfdfd9", "#fcfcfa"
CURVES = ("#2a6592", "#b4470b", "#17693f", "#7a5600")
GONE = CURVES[1]
VARIABLES = {
    INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper",
    CURVES[0]: "kept", GONE: "gone", CURVES[2]: "pass", CURVES[3]: "unsure",
}  # fmt: skip
MARKERS = "os^D"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "simprune", "text.parse_math": False, "text.color": INK,
    "font.size": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.frameon": False, "legend.handletextpad": 0.2,
    "axes.edgecolor": SOFT, "axes.labelcolor": INK, "axes.linewidth": 0.6, "xtick.color": SOFT, "ytick.color": SOFT,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
COLUMN, PAGE = 245.0, 490.0  # widths in points
LEGEND: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0, "columnspacing": 0.9, "handlelength": 1.6,
}  # fmt: skip


@dataclass
class Chart:
    """A figure and what it shows in words; of a map also where its cells are, in points from the upper left corner."""

    figure: "Figure"
    label: str
    cell: float = 0.0
    left: float = 0.0
    top: float = 0.0
    titles: list[tuple[int, int, str]] = field(default_factory=list)  # row, column, text of a cell that is pointed at


@contextmanager
def styled() -> Iterator[None]:
    """Drawing in our style, whatever the settings of matplotlib are, which are as before afterwards."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        yield


def empty_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)
