"""Similarities of all pairs of representations, with chance levels and intervals."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Null:
    """Values of L representations whose inputs were shuffled, so that only the bias of the measure remains.

    Args:
        mean: (L, L) over the shuffles.
        quantiles: (L, L) for "2.5%", "50%", "97.5%".
        p_value: (L, L), the share of shuffles at least as similar as the real pairing, which itself counts as one.
        repeats: number of shuffles.
        inputs: how many inputs were shuffled.
    """

    mean: np.ndarray
    quantiles: dict[str, np.ndarray]
    p_value: np.ndarray
    repeats: int
    inputs: int = 0


@dataclass(frozen=True, eq=False)
class Interval:
    """Limits between which 95 % of the values lie when the inputs are drawn again.

    Args:
        low, high: (L, L).
        resamples: number of repetitions.
        inputs: how many inputs were drawn from.
    """

    low: np.ndarray
    high: np.ndarray
    resamples: int
    inputs: int = 0


@dataclass(frozen=True, eq=False)
class SimilarityMatrix:
    """Values (L, L) of one measure for all pairs of L named representations; read-only float64.

    >>> SimilarityMatrix(("a", "b"), np.eye(2), "cka")
    SimilarityMatrix cka
             a      b
    a    1.000  0.000
    b    0.000  1.000
    """

    names: tuple[str, ...]
    values: np.ndarray = field(repr=False)
    measure: str = ""
    null: Null | None = field(default=None, repr=False)
    interval: Interval | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if values.shape != (len(self.names), len(self.names)):
            raise ValueError(f"expected one row and column per name ({len(self.names)}), got {values.shape}")
        values.flags.writeable = False
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "values", values)

    def table(self) -> str:
        """The matrix as text, three decimals."""
        first = max(map(len, self.names))
        widths = [max(len(name), 7) for name in self.names]
        lines = [" " * first + "".join(f"{name:>{w + 2}}" for name, w in zip(self.names, widths, strict=True))]
        for name, row in zip(self.names, self.values, strict=True):
            lines.append(f"{name:<{first}}" + "".join(f"{v:>{w + 2}.3f}" for v, w in zip(row, widths, strict=True)))
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"SimilarityMatrix {self.measure}\n{self.table()}"
