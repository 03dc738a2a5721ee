"""Similarity of what networks answer: `get("disagreement")(logits_a, logits_b)`, original first.

Every module of this package is imported, so a new measure is one dataclass in one file and nothing else.
"""

from importlib import import_module
from pkgutil import iter_modules

from ._base import FunctionalMeasure, Outputs, Score, classes, get, names

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["FunctionalMeasure", "Outputs", "Score", "classes", "get", "names"]
