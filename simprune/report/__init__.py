"""Pages for people: self-contained HTML made from the JSON that a run writes, and the figures of a run for papers."""

from .page import FOLLOWS, render

__all__ = ["FOLLOWS", "render"]
