"""Numbers that differ by rounding alone are equal, and the first of them counts.

Sums in single precision differ in their last digits with the number of threads, the batch size and the processor. What
is equal but for them, such as two channels with the same weights, must not be ordered by them: the same inputs give the
same plan.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TIE = 1e-5  # share by which numbers may differ and count as equal
ALIKE = 1e-6  # that similarities in [0, 1] may differ by, and count as equal
OUTPUT = 1e-9  # squared change of an output, as a share of its variance, that single precision does not resolve


def first_least(values: Sequence[float] | NDArray[np.float64], floor: float = 0.0) -> int:
    """The first index of a value that is the least, or equals it.

    Args:
        values: at least one; infinite ones are never chosen where there are others.
        floor: what values may differ by, and count as equal, whatever their size.

    >>> first_least([3.0, 1.0000001, 1.0])
    1
    """
    array = np.asarray(values, np.float64)
    least = float(array.min())
    return int(np.flatnonzero(array <= least + _slack(least, floor))[0])


def levelled(values: Sequence[float] | NDArray[np.float64], floor: float = 0.0) -> NDArray[np.float64]:
    """The values, in which those that are equal are the least of them.

    Values are equal to the least one that is equal to no smaller one, so that a row of small steps does not become one
    value.

    Args:
        values: (N,), in any order.
        floor: as of `first_least`.

    >>> levelled([3.0, 1.0000001, 1.0]).tolist()
    [3.0, 1.0, 1.0]
    """
    array = np.asarray(values, np.float64)
    level, limit = np.empty_like(array), -np.inf
    least = 0.0
    for index in array.argsort(kind="stable").tolist():
        value = float(array[index])
        if value > limit:
            least, limit = value, value + _slack(value, floor)
        level[index] = least
    return level


def _slack(value: float, floor: float) -> float:
    return max(TIE * abs(value), floor) if np.isfinite(value) else 0.0
