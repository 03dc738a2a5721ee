"""What `budget` in a recipe may be: costs to keep, "smallest", or a list of shares for a frontier."""

from collections.abc import Mapping, Sequence
from typing import Any

from simprune.names import did_you_mean
from simprune.pipeline import SMALLEST
from simprune.planning.budget import Budget


def check_budget(budget: Any, command: str) -> None:
    """ValueError, in one line, unless this command can work with the budget."""
    if isinstance(budget, Mapping) or budget is None:
        Budget.of(budget or {})
    elif budget == SMALLEST:
        if command != "compress":
            raise ValueError("budget: smallest is searched by `simprune compress`; for a plan give costs, as macs: 0.5")
    elif isinstance(budget, str):
        raise ValueError(f"budget: unknown {budget!r}; {did_you_mean(budget, [SMALLEST])}, or costs, as macs: 0.5")
    elif isinstance(budget, Sequence):
        _check_shares(budget, command)
    else:
        raise ValueError(f"budget: expected costs to keep, as macs: 0.5, a list of shares, or smallest; got {budget!r}")


def _check_shares(shares: Sequence[Any], command: str) -> None:
    if command != "plan":
        raise ValueError(f"budget: a list is for the frontier of `simprune plan`; {command} takes one, as macs: 0.5")
    if not shares:
        raise ValueError("budget: the list is empty; give shares of the macs to keep, such as [0.9, 0.7, 0.5, 0.3]")
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"budget: a list is one of shares of the macs in (0, 1]; got {share!r}")
    if len(set(shares)) < len(shares):
        raise ValueError(f"budget: a share is listed twice in {list(shares)}; list each once")


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
