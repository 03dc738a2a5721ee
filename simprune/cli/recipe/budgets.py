"""Several budgets in one recipe, for a frontier."""

from collections.abc import Mapping, Sequence
from typing import Any


def several(budget: Any) -> tuple[str, list[Any]] | None:
    """The kind of cost and the shares of a frontier's budgets; None for one budget.

    >>> several([0.9, 0.5]), several({"params": [0.8, 0.6]}), several({"macs": 0.5})
    (('macs', [0.9, 0.5]), ('params', [0.8, 0.6]), None)
    """
    if _listed(budget):
        return "macs", list(budget)
    if not isinstance(budget, Mapping):
        return None
    listed = [(str(kind), list(given)) for kind, given in budget.items() if _listed(given)]
    if listed and len(budget) > 1:
        raise ValueError(f"budget: a frontier is along one kind of cost; got {', '.join(budget)}")
    return listed[0] if listed else None


def _listed(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)
