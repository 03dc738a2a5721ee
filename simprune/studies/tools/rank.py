"""Kendall's rank correlation with an interval, all draws at once."""

import numpy as np
from numpy.typing import ArrayLike

from simprune.studies.statistics import DRAWS


def kendall_interval(
    scores: ArrayLike, truth: ArrayLike, seed: int = 0, draws: int = DRAWS, leave_out_ties: bool = False
) -> tuple[float, float, float]:
    """Kendall's tau-b of two lists, and its 95 % interval when their items are drawn again with replacement.

    It is what `bootstrap` gives of `kendall`, in matrix products: an item that is drawn twice is tied with itself.

    Args:
        scores, truth: numbers of the same items; items with a NaN or None are left out.
        seed: of the draws.
        draws: number of draws; those in which a list is constant are left out.
        leave_out_ties: whether only pairs that differ in both lists count (Goodman and Kruskal's gamma): a truth of
            few levels that is followed perfectly then has the value 1.

    Returns:
        The value and the limits; NaN where a list is constant, and limits of NaN where it is in half of the draws.

    Raises:
        ValueError: for lists of unequal lengths.

    >>> kendall_interval([1, 2, 3, 4], [10, 20, 30, 40])
    (1.0, 1.0, 1.0)
    """
    x, y = np.array(scores, dtype=float), np.array(truth, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two lists of one length; got shapes {x.shape} and {y.shape}")
    both = ~(np.isnan(x) | np.isnan(y))
    count = int(both.sum())
    if count < 2:
        return float("nan"), float("nan"), float("nan")
    first, second = (np.sign(values[both][:, None] - values[both]) for values in (x, y))
    if leave_out_ties:
        first, second = first * second**2, second * first**2
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(float)
    value = float(tau_of_draws(np.ones((1, count)), first, second)[0])
    drawn = tau_of_draws(times, first, second)
    drawn = drawn[~np.isnan(drawn)]
    if 2 * len(drawn) <= draws:
        return value, float("nan"), float("nan")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value, float(low), float(high)


def tau_of_draws(times: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Tau-b (draws,) of items of which draw d has `times[d, i]` copies.

    Args:
        times: (draws, n) numbers of copies.
        first, second: (n, n) signs of the differences between items in either list.
    """

    def total(signs: np.ndarray) -> np.ndarray:
        return ((times @ signs) * times).sum(1)

    lengths = np.sqrt(total(first * first) * total(second * second))
    return np.divide(total(first * second), lengths, out=np.full(len(times), np.nan), where=lengths > 0)
