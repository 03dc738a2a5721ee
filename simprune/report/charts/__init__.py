"""The charts: functions from data to a matplotlib figure that stands both in a page and in a paper.

matplotlib is imported where it is used.
"""

from .cells import NAMED_FROM, scale
from .depth import profile
from .maps import similarity_map, window_map
from .outcome import frontier, reliability, training
from .series import dots, lines, scatter
from .style import COLUMN, VARIABLES, Chart
from .writing import inline, save

__all__ = [
    "COLUMN", "NAMED_FROM", "VARIABLES", "Chart", "dots", "frontier", "inline", "lines", "profile", "reliability",
    "save", "scale", "scatter", "similarity_map", "training", "window_map",
]  # fmt: skip
