"""Confidence bounds: exact for counts, by bootstrap for everything else."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy

Interval = tuple[float, float]

TWO_SIDED = 0.975  # confidence of each bound of a 95 % interval
DRAWS = 2000  # of the bootstrap
CHUNK = 1 << 21  # numbers that the bootstrap holds at once
STRATIFY_BELOW = 30  # samples per class
RARE_CLASS = 5  # smaller classes share a stratum: alone they would show no spread


def clopper_pearson(events: Any, count: Any, confidence: float) -> tuple[Any, Any]:
    """Exact lower and upper bounds of a rate, each one-sided at `confidence`; of many rates for arrays.

    >>> print(round(clopper_pearson(0, 300, 0.95)[1], 5))
    0.00994
    """
    events, count = np.asarray(events, dtype=np.float64), np.asarray(count, dtype=np.float64)
    quantile = scipy.stats.beta.ppf
    lower = np.where(events > 0, quantile(1 - confidence, np.maximum(events, 1e-300), count - events + 1), 0.0)
    upper = np.where(events < count, quantile(confidence, events + 1, np.maximum(count - events, 1e-300)), 1.0)
    return lower[()], upper[()]


def paired_difference(lost: Any, gained: Any, count: Any, confidence: float) -> tuple[Any, Any]:
    """One-sided bounds of (lost - gained) / count, where lost and gained samples exclude each other.

    Clopper-Pearson bounds of both rates, joined by the method of variance estimates recovery (Zou and Donner 2008) with
    the correlation of exclusive events. With many flips this is the interval from the paired standard error. With few
    flips that interval is far too narrow, and this one still covers; with none this is Clopper-Pearson. Arguments are
    numbers, or arrays for many differences at once.
    """
    lost, gained, count = (np.asarray(values, dtype=np.float64) for values in (lost, gained, count))
    p, q = lost / count, gained / count
    (p_low, p_high), (q_low, q_high) = (clopper_pearson(k, count, confidence) for k in (lost, gained))
    both = p * q > 0
    correlation = np.sqrt(np.where(both, p * q / np.where(both, (1 - p) * (1 - q), 1.0), 0.0))

    def half(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(x * x + y * y + 2 * correlation * x * y)

    return (p - q - half(p - p_low, q_high - q))[()], (p - q + half(p_high - p, q - q_low))[()]


def rate_interval(rate: float, count: int) -> list[float]:
    """The 95 % interval (Clopper-Pearson) of a rate on `count` inputs.

    >>> [round(end, 3) for end in rate_interval(0.98, 800)]
    [0.968, 0.989]
    """
    lower, upper = clopper_pearson(round(rate * count), count, TWO_SIDED)
    return [float(lower), float(upper)]


def margin(hits: np.ndarray, others: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """How much more often a model is right than several others are on average, with its paired 95 % interval.

    The interval is over inputs, for these very models.

    Args:
        hits: (inputs,) whether the model is right.
        others: (models, inputs) whether the others are.
        seed: of the bootstrap.

    Returns:
        `value` and `bounds`.

    >>> margin(np.ones(9, bool), np.ones((2, 9), bool))["value"]
    0.0
    """
    difference = hits - others.mean(0)
    value, zeros = float(difference.mean()), np.zeros(len(difference), dtype=np.int64)
    if np.ptp(difference) == 0:
        bounds = without_spread(value, (-1.0, 1.0), len(difference), TWO_SIDED)
    else:
        bounds = bootstrap_mean(difference, zeros, TWO_SIDED, seed)
    return {"value": value, "bounds": [float(bound) for bound in bounds]}


def bootstrap_mean(values: np.ndarray, strata: np.ndarray, confidence: float, seed: int) -> Interval:
    """One-sided bounds of the mean of `values` (N,) by the studentized bootstrap within strata.

    Studentized, because per-sample divergences are skewed and plain percentiles then bound them too low.
    Strata take the class counts as fixed: right for test sets that are balanced by design.
    """
    order, sizes, starts = _layout(strata)
    x = values[order].astype(np.float64)
    x -= np.repeat(np.add.reduceat(x, starts) / sizes, sizes)
    unbias = sizes / np.maximum(sizes - 1, 1)

    def error(rows: np.ndarray, sums: np.ndarray) -> np.ndarray:
        within = np.add.reduceat(rows * rows, starts, axis=-1) - sums * sums / sizes
        return np.sqrt((np.maximum(within, 0) * unbias).sum(-1)) / len(x)

    draws = []
    for index in _resamples(sizes, starts, seed):
        rows = x[index]
        sums = np.add.reduceat(rows, starts, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws.append(sums.sum(1) / len(x) / error(rows, sums))
    t = np.concatenate(draws)
    t[np.isnan(t)] = 0  # no spread, and no deviation either
    mean, spread = float(values.mean()), float(error(x, np.zeros(len(sizes))))
    # no interpolation: a draw without spread is infinite
    lower = mean - spread * float(np.quantile(t, confidence, method="higher"))
    upper = mean - spread * float(np.quantile(t, 1 - confidence, method="lower"))
    return lower, upper


def resampled(statistic: Callable[[np.ndarray], float], rows: np.ndarray, strata: np.ndarray, seed: int) -> np.ndarray:
    """The percentile bootstrap: the statistic of rows drawn with replacement within strata, `DRAWS` times."""
    order, sizes, starts = _layout(strata)
    rows = rows[order]
    return np.array([statistic(rows[index]) for block in _resamples(sizes, starts, seed) for index in block])


def percentiles(draws: np.ndarray, confidence: float) -> Interval:
    """One-sided bounds from the draws of `resampled`; an undefined draw counts as the worst on both sides."""
    undefined = np.isnan(draws)
    lower = np.quantile(np.where(undefined, -np.inf, draws), 1 - confidence, method="lower")
    upper = np.quantile(np.where(undefined, np.inf, draws), confidence, method="higher")
    return float(lower), float(upper)


def without_spread(value: float, limits: Interval, count: float, confidence: float) -> Interval:
    """Bounds where all samples are equal; as many others as Clopper-Pearson allows may lie at an end of the range.

    Args:
        value: of all samples.
        limits: the ends of the range of values. Where an end is infinite, the bound is the value, and for a single
            sample the end itself.
        count: of samples.
        confidence: of each bound.
    """
    unseen = clopper_pearson(0, count, confidence)[1]

    def towards(end: float) -> float:
        if math.isfinite(end):
            return value + (end - value) * unseen
        return value if count > 1 else end

    return towards(limits[0]), towards(limits[1])


def narrowed(value: float, interval: Interval, scale: float) -> Interval:
    """The interval that `scale` times as many samples would give."""
    root = math.sqrt(scale)
    return value - (value - interval[0]) / root, value + (interval[1] - value) / root


def together(level: float, parts: int) -> float:
    """Confidence of every one of several lower bounds that hold together.

    The largest of several values is bounded from below by the largest of their bounds at this confidence: the step of
    Holm's that decides whether any of them is above a limit. From above no correction is needed: it is bounded by the
    largest of their bounds, as the bound of the worst one is among them.
    """
    return 1 - (1 - level) / parts


def strata_of(labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """(count,) the stratum of every sample, within which a bootstrap resamples.

    Args:
        labels: (N,) the class of every sample; any other length than `count` where not every sample has one class.
        count: of samples.
        classes: 0 where outputs are no class scores.

    Returns:
        The label plus 1 where classes are small, 0 for samples of rare classes; 0 for all samples in any other case.
    """
    if len(labels) != count or not classes or count / classes >= STRATIFY_BELOW:
        return np.zeros(count, dtype=np.int64)
    common = np.bincount(labels)[labels] >= RARE_CLASS
    return np.where(common, labels + 1, 0)


def _layout(strata: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order that puts strata side by side, their sizes and the index at which every stratum starts."""
    sizes = np.unique(strata, return_counts=True)[1]
    return np.argsort(strata, kind="stable"), sizes, np.cumsum(sizes) - sizes


def _resamples(sizes: np.ndarray, starts: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Blocks (draws, N) of indices, `DRAWS` in all: every stratum is drawn from itself, with replacement."""
    random = np.random.default_rng(seed)
    first, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    block = max(1, CHUNK // len(first))
    for done in range(0, DRAWS, block):
        uniform = random.random((min(block, DRAWS - done), len(first)))
        yield first + (uniform * size).astype(np.int64)
