"""Pages for people (self-contained HTML, a function of the JSON that a run writes), and figures for papers."""

from .page import FOLLOWS, render

__all__ = ["FOLLOWS", "render"]
