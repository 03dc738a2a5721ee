"""What a comparison of all pairs returns."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Null:
    """Values (L, L) between representations whose inputs are no longer paired: what is left is bias.

    `quantiles[name]` (L, L) for "2.5%", "50%", "97.5%"; `p_value` (L, L), the share of shuffles at least as similar
    as the real pairing, itself counted as one. `inputs`: how many were shuffled.
    """

    mean: np.ndarray
    quantiles: dict[str, np.ndarray]
    p_value: np.ndarray
    repeats: int
    inputs: int = 0


@dataclass(frozen=True, eq=False)
class Interval:
    """Bounds (L, L) between which 95 % of the values of as many other inputs would be; `inputs`: how many were drawn
    from."""

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
        head = " " * first + "".join(f"{name:>{w + 2}}" for name, w in zip(self.names, widths, strict=True))
        lines = [
            f"{name:<{first}}" + "".join(f"{v:>{w + 2}.3f}" for v, w in zip(row, widths, strict=True))
            for name, row in zip(self.names, self.values, strict=True)
        ]
        return "\n".join([head, *lines])

    def __repr__(self) -> str:
        return f"SimilarityMatrix {self.measure}\n{self.table()}"
