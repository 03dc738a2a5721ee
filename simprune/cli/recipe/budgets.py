"""What `budget` in a recipe may be: costs to keep, "smallest", or shares for a frontier."""

from collections.abc import Mapping, Sequence
from typing import Any

from simprune.api import SMALLEST
from simprune.core.names import did_you_mean
from simprune.planners.budget import Budget
from simprune.tune.frontier import check_shares


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


def check_budget(budget: Any, command: str) -> None:
    """ValueError, in one line, unless this command can work with the budget."""
    if (frontier := several(budget)) is not None:
        if command != "plan":
            raise ValueError(
                f"budget: a list is for the frontier of `simprune plan`; {command} takes one, as macs: 0.5"
            )
        check_shares(*frontier)
    elif isinstance(budget, Mapping) or budget is None:
        Budget.of(budget or {})
    elif budget == SMALLEST:
        if command != "compress":
            raise ValueError("budget: smallest is searched by `simprune compress`; for a plan give costs, as macs: 0.5")
    elif isinstance(budget, str):
        raise ValueError(f"budget: unknown {budget!r}; {did_you_mean(budget, [SMALLEST])}, or costs, as macs: 0.5")
    else:
        raise ValueError(f"budget: expected costs to keep, as macs: 0.5, a list of shares, or smallest; got {budget!r}")


def rewritten(overrides: Sequence[str]) -> list[str]:
    """Overrides such that any kind of budget can follow any other; Hydra merges mappings with nothing but mappings.

    >>> rewritten(["budget=[0.9,0.5]", "budget.macs=0.3", "seed=1"])
    ['budget=null', 'budget=[0.9,0.5]', '++budget.macs=0.3', 'seed=1']
    """
    found: list[str] = []
    for override in overrides:
        if override.startswith("budget="):
            found.append("budget=null")
        found.append(f"++{override}" if override.startswith("budget.") else override)
    return found
