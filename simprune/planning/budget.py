"""Budgets: what may be kept, as fractions of the original's macs, params or bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from simprune.cost import KINDS, Cost
from simprune.names import did_you_mean


@dataclass(frozen=True)
class Budget:
    """Fractions in (0, 1] of the original's cost; all of them have to be met.

    >>> Budget.of({"macs": 0.5}).met(Cost(50, 9, 9), Cost(100, 9, 9))
    True
    """

    limits: Mapping[str, float]

    @classmethod
    def of(cls, limits: Mapping[str, float | None]) -> "Budget":
        """Checked limits; entries that are None are left out."""
        given = {kind: limit for kind, limit in limits.items() if limit is not None}
        if not given:
            raise ValueError(f"budget: give at least one of {', '.join(KINDS)}, such as macs=0.5")
        for kind, limit in given.items():
            if kind not in KINDS:
                raise ValueError(f"budget: unknown cost {kind!r}; {did_you_mean(str(kind), KINDS)}")
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= 1:
                raise ValueError(f"budget: {kind} must be a fraction in (0, 1]; got {limit!r}")
        return cls({kind: float(limit) for kind, limit in given.items()})

    def met(self, cost: Cost, original: Cost) -> bool:
        share = cost.share_of(original)
        return all(share[kind] <= limit for kind, limit in self.limits.items())
