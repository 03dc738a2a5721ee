"""Budgets: what may be kept, as shares of the original's cost or as absolute amounts, several at once.

A number in (0, 1] is a share of the original. An absolute amount is a text with a unit, `60M` macs, `0.4M` params,
`2MB`, `3ms`, or, for what is counted, a whole number above 100. Numbers in between are refused: 50 could mean 50 %.
Decimal prefixes are powers of 1000 (MB), binary ones powers of 1024 (MiB). A percentage, `50%`, is a share.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from simprune.core.cost import KINDS, Cost
from simprune.core.names import did_you_mean

MEASURED = ("memory", "latency")  # known only by running a network
BUDGETS = (*KINDS, *MEASURED)
_COUNT = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {"B": 1.0} | {
    f"{prefix}{unit}": base ** (place + 1)
    for place, prefix in enumerate("kMGT")
    for unit, base in (("B", 1000.0), ("iB", 1024.0))
}
_BYTES["KB"], _BYTES["KiB"] = 1e3, 1024.0
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
UNITS = {"macs": _COUNT, "params": _COUNT, "bytes": _BYTES, "memory": _BYTES, "latency": _SECONDS}
EXAMPLES = {"macs": "60M", "params": "0.4M", "bytes": "2MB", "memory": "8MiB", "latency": "3ms"}
AMBIGUOUS = 100  # up to here, a bare number may have been meant as a percentage

Amount = float | int | str


@dataclass(frozen=True)
class Limit:
    """At most a share of the original, or an absolute count, number of bytes or seconds; `text`: as it was given."""

    amount: float
    share: bool
    text: Amount

    def of(self, original: float) -> float:
        """The largest cost that meets it."""
        return self.amount * original if self.share else self.amount


@dataclass(frozen=True)
class Budget:
    """Limits for some kinds of cost; all of them have to be met.

    >>> Budget.of({"macs": 0.5}).met(Cost(50, 9, 9), Cost(100, 9, 9))
    True
    >>> Budget.of({"params": "0.4M"}).limits["params"].amount
    400000.0
    """

    limits: Mapping[str, Limit]

    @classmethod
    def of(cls, limits: Mapping[str, Amount | None]) -> "Budget":
        """Checked limits; entries that are None are left out. ValueError in one line for what cannot be read."""
        for kind in limits:
            if kind not in BUDGETS:
                raise ValueError(f"budget: unknown cost {kind!r}; {did_you_mean(str(kind), BUDGETS)}")
        given = {kind: _limit(kind, limit) for kind, limit in limits.items() if limit is not None}
        if not given:
            raise ValueError(f"budget: give at least one of {', '.join(BUDGETS)}, such as macs=0.5")
        return cls(given)

    @property
    def counted(self) -> "Budget":
        """The limits that a plan's cost shows exactly: all but measured ones."""
        return Budget({kind: limit for kind, limit in self.limits.items() if kind in KINDS})

    @property
    def measured(self) -> "Budget":
        """The limits of memory and latency."""
        return Budget({kind: limit for kind, limit in self.limits.items() if kind in MEASURED})

    def met(self, cost: Cost, original: Cost) -> bool:
        """Whether the limits on macs, params and bytes hold."""
        counted = self.counted.limits.items()
        return all(getattr(cost, kind) <= limit.of(getattr(original, kind)) for kind, limit in counted)

    def to_dict(self) -> dict[str, Amount]:
        """As it was given; `Budget.of` reads it back."""
        return {kind: limit.text for kind, limit in self.limits.items()}

    def __str__(self) -> str:
        texts = {kind: f"{limit.text:g}" if limit.share else limit.text for kind, limit in self.limits.items()}
        return ", ".join(f"{kind} {text}" for kind, text in texts.items())


def _limit(kind: str, given: Amount) -> Limit:
    example = f"a fraction in (0, 1] or an amount such as {EXAMPLES[kind]}"
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError(f"budget: {kind} must be {example}; got {given!r}")
    if isinstance(given, str):
        found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(\S*)\s*", given)
        try:
            number, unit = float(found[1] if found else ""), found[2] if found else ""
        except ValueError:
            raise ValueError(f"budget: {kind} must be {example}; got {given!r}") from None
        if unit == "%" and 0 < number <= 100:
            return Limit(number / 100, True, number / 100)
        if unit:
            known = UNITS[kind]
            if unit not in known or number <= 0:
                raise ValueError(f"budget: {kind} must be {example} (units: {', '.join(known)}); got {given!r}")
            return Limit(number * known[unit], False, given.strip())
        given = int(number) if number.is_integer() else number
    if 0 < given <= 1:
        return Limit(float(given), True, float(given))
    if kind != "latency" and given > AMBIGUOUS and float(given).is_integer():
        return Limit(float(given), False, int(given))
    hint = ""
    if 1 < given <= AMBIGUOUS:
        hint = f": is that {given:g}% or {given:g}{next(iter(UNITS[kind]))}? Write the sign or the unit"
    raise ValueError(f"budget: {kind} must be {example}; got {given!r}{hint}")
