"""Budgets: how much of the cost may remain, as shares of the original's cost or as absolute amounts, several at once.

A number in (0, 1] is a share of the original. An absolute amount is a text with a unit, `60M` macs, `0.4M` params,
`2MB`, `3ms`, or, for what is counted, a whole number above 100. Numbers in between are refused: 50 could mean 50 %.
Decimal prefixes are powers of 1000 (MB), binary ones powers of 1024 (MiB). A percentage, `50%`, is a share.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from simprune.core.cost import KINDS, Cost
from simprune.core.names import did_you_mean

MEASURED = ("memory", "latency")  # kinds of cost that are known only once a network has run
BUDGETS = (*KINDS, *MEASURED)
_COUNT = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("kMGT", 1)
    for unit, base in (("B", 1000.0), ("iB", 1024.0))
}
_BYTES["KB"], _BYTES["KiB"] = 1e3, 1024.0
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
UNITS = {"macs": _COUNT, "params": _COUNT, "bytes": _BYTES, "memory": _BYTES, "latency": _SECONDS}
EXAMPLES = {"macs": "60M", "params": "0.4M", "bytes": "2MB", "memory": "8MiB", "latency": "3ms"}
AMBIGUOUS = 100  # a bare number in (1, 100] may have been meant as a percentage, and is refused

Amount = float | int | str


@dataclass(frozen=True)
class Limit:
    """The most that a plan may cost of one kind.

    `amount`: a share of the original's cost where `share` is true, otherwise a count, a number of bytes, or seconds.
    `text`: what the user typed, which plan files repeat.
    """

    amount: float
    share: bool
    text: Amount

    def of(self, original: float) -> float:
        """The largest cost that meets the limit, for an original of this cost."""
        return self.amount * original if self.share else self.amount


@dataclass(frozen=True)
class Budget:
    """Limits for one or more kinds of cost; a plan has to meet all of them.

    >>> Budget.of({"macs": 0.5}).met(Cost(50, 9, 9), Cost(100, 9, 9))
    True
    >>> Budget.of({"params": "0.4M"}).limits["params"].amount
    400000.0
    """

    limits: Mapping[str, Limit]

    @classmethod
    def of(cls, limits: Mapping[str, Amount | None]) -> "Budget":
        """Read a budget.

        Args:
            limits: by kind of cost (see `BUDGETS`), a share in (0, 1] or an amount such as "60M"; None means no limit.

        Raises:
            ValueError: for an unknown kind, a limit that cannot be read, or no limit at all.
        """
        for kind in limits:
            if kind not in BUDGETS:
                raise ValueError(f"budget: unknown cost {kind!r}; {did_you_mean(str(kind), BUDGETS)}")
        checked = {kind: _limit(kind, limit) for kind, limit in limits.items() if limit is not None}
        if not checked:
            raise ValueError(f"budget: give at least one of {', '.join(BUDGETS)}, such as macs=0.5")
        return cls(checked)

    @property
    def counted(self) -> "Budget":
        """The limits of macs, params and bytes, which the cost model of a plan gives exactly."""
        return Budget({kind: limit for kind, limit in self.limits.items() if kind in KINDS})

    @property
    def measured(self) -> "Budget":
        """The limits of memory and latency, for which the edited network has to run."""
        return Budget({kind: limit for kind, limit in self.limits.items() if kind in MEASURED})

    def met(self, cost: Cost, original: Cost) -> bool:
        """Whether the limits on macs, params and bytes hold."""
        counted = self.counted.limits.items()
        return all(getattr(cost, kind) <= limit.of(getattr(original, kind)) for kind, limit in counted)

    def to_dict(self) -> dict[str, Amount]:
        """The limits as the user typed them; `Budget.of` reads them back."""
        return {kind: limit.text for kind, limit in self.limits.items()}

    def __str__(self) -> str:
        texts = {kind: f"{limit.text:g}" if limit.share else limit.text for kind, limit in self.limits.items()}
        return ", ".join(f"{kind} {text}" for kind, text in texts.items())


def _limit(kind: str, limit: Amount) -> Limit:
    """Read one limit; ValueError in one line for a text or number that has no clear meaning."""
    example = f"a fraction in (0, 1] or an amount such as {EXAMPLES[kind]}"
    if isinstance(limit, bool) or not isinstance(limit, int | float | str):
        raise ValueError(f"budget: {kind} must be {example}; got {limit!r}")
    if isinstance(limit, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(\S*)\s*", limit)
        try:
            number, unit = float(match[1] if match else ""), match[2] if match else ""
        except ValueError:
            raise ValueError(f"budget: {kind} must be {example}; got {limit!r}") from None
        if unit == "%" and 0 < number <= 100:
            return Limit(number / 100, True, number / 100)
        if unit:
            units = UNITS[kind]
            if unit not in units or number <= 0:
                raise ValueError(f"budget: {kind} must be {example} (units: {', '.join(units)}); got {limit!r}")
            return Limit(number * units[unit], False, limit.strip())
        limit = int(number) if number.is_integer() else number
    if 0 < limit <= 1:
        return Limit(float(limit), True, float(limit))
    if kind != "latency" and limit > AMBIGUOUS and float(limit).is_integer():
        return Limit(float(limit), False, int(limit))
    hint = ""
    if 1 < limit <= AMBIGUOUS:
        hint = f": is that {limit:g}% or {limit:g}{next(iter(UNITS[kind]))}? Write the sign or the unit"
    raise ValueError(f"budget: {kind} must be {example}; got {limit!r}{hint}")
