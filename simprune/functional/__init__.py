"""Similarity of what networks answer: `get("disagreement")(logits_a, logits_b)`, the original first.

Every module of this package is imported here, so a measure exists as soon as its dataclass does.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from typing import Any

from simprune.functional._base import FunctionalMeasure, Outputs, Score, _registry

__all__ = ["FunctionalMeasure", "Outputs", "Score", "classes", "get", "names"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def classes() -> dict[str, type[FunctionalMeasure]]:
    """Every measure's dataclass by id, sorted.

    >>> classes()["disagreement"].__name__
    'Disagreement'
    """
    return dict(sorted(_registry.items()))


def names() -> list[str]:
    """Ids of all measures, sorted.

    >>> "disagreement" in names()
    True
    """
    return list(classes())


def get(id: str, **hyper: Any) -> FunctionalMeasure:
    """The measure `id` with these hyperparameters.

    Raises KeyError for an unknown id, naming the nearest, and ValueError for unknown or bad hyperparameters.

    >>> get("jensen_shannon_divergence", base=2)
    JensenShannonDivergence(base=2)
    """
    if id not in _registry:
        near = difflib.get_close_matches(str(id), names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise KeyError(f"no functional measure is called {id!r}; {hint}")
    cls = _registry[id]
    known = {each.name: each for each in dataclasses.fields(cls)}
    required = [
        name
        for name, each in known.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    unknown = [name for name in hyper if name not in known]
    missing = [name for name in required if name not in hyper]
    if unknown or missing:
        problem = f"does not take {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise ValueError(f"{id} {problem}; its hyperparameters: {', '.join(known) or 'none'}")
    return cls(**hyper)
