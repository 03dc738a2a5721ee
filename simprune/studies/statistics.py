"""Rank correlations, and intervals by resampling whole groups, such as networks."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import stats

T = TypeVar("T")
DRAWS = 500


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN for fewer than three pairs, or where one side is constant.

    >>> spearman([1, 2, 3], [10, 100, 1000])
    1.0
    """
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    found: Any = stats.spearmanr(x, y)
    return round(float(found.statistic), 12)


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-b; NaN for fewer than two pairs, or where one side is constant.

    >>> kendall([1, 2, 3], [3, 2, 1])
    -1.0
    """
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    found: Any = stats.kendalltau(x, y)
    return round(float(found.statistic), 12)


def bootstrap(
    groups: Sequence[T], statistic: Callable[[list[T]], float], seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> tuple[float, float, float]:
    """A statistic of groups, and its interval by the percentiles of draws of as many groups with replacement.

    Draws in which the statistic is NaN are left out; with fewer than two groups the bounds are NaN.

    >>> value, low, high = bootstrap([1.0, 2.0, 3.0], lambda drawn: sum(drawn) / len(drawn))
    >>> value, low < value < high
    (2.0, True)
    """
    value = statistic(list(groups))
    if len(groups) < 2:
        return value, math.nan, math.nan
    rng = np.random.default_rng(seed)
    drawn = [statistic([groups[i] for i in rng.integers(0, len(groups), len(groups))]) for _ in range(draws)]
    known = [each for each in drawn if not math.isnan(each)]
    if not known:
        return value, math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def mean(values: Sequence[float | None]) -> float:
    """The mean of what is known; NaN where nothing is.

    >>> mean([1.0, float("nan"), 3.0])
    2.0
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
