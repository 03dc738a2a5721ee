"""Similarity of what networks answer: `get("disagreement")(logits_a, logits_b)`, the original first.

A measure is in the registry (`simprune.core.registry`, kind "functional") as soon as its dataclass exists.
"""

from typing import Any

from simprune.core import registry
from simprune.functional._base import FORMS, Bounds, FunctionalMeasure, Gathered, Outputs, Score

__all__ = ["FORMS", "Bounds", "FunctionalMeasure", "Gathered", "Outputs", "Score", "classes", "get", "names"]


def classes() -> dict[str, type[FunctionalMeasure]]:
    """Every measure's dataclass by id, sorted.

    >>> classes()["disagreement"].__name__
    'Disagreement'
    """
    return {id: part.make for id, part in registry.parts("functional").items()}  # pyright: ignore[reportReturnType]


def names() -> list[str]:
    """Ids of all measures, sorted.

    >>> "disagreement" in names()
    True
    """
    return list(registry.parts("functional"))


def get(id: str, **hyper: Any) -> FunctionalMeasure:
    """The measure `id` with these hyperparameters.

    Raises KeyError for an unknown id, naming the nearest, and ValueError for unknown or bad hyperparameters.

    >>> get("jensen_shannon_divergence", base=2)
    JensenShannonDivergence(base=2)
    """
    part = registry.find("functional", id)
    registry.check_options(part, hyper)
    return part.make(**hyper)
