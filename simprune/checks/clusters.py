"""Bounds of scores of tokens: the tokens of one document are not independent, so documents are the samples.

A score is a function of means over tokens, of sums that every document (or sequence, where documents are unknown) adds
to. Its variance follows from what every document adds to its linearisation (the variance of a ratio estimator). From it
come studentized bootstrap bounds or, for a share of tokens, Clopper-Pearson bounds for the number of independent tokens
that would tell as much (Korn and Graubard 1998).
"""

import math
from functools import cache

import numpy as np
import scipy
from torch import Tensor

from simprune.checks import intervals
from simprune.checks.intervals import Interval, clopper_pearson
from simprune.functional import Bounds
from simprune.functional.tokens import NOWHERE, TokenAgreement, _Tokens, clustered

FEW = 20  # documents: with fewer, their windows are the samples, and bounds speak of these documents alone
CHUNK = 1 << 21  # numbers that the bootstrap holds at once


def token_bounds(measure: _Tokens, rows: Tensor, seed: int) -> tuple[Bounds, str]:
    """One-sided bounds of a measure of tokens from its rows, and the method's name."""
    samples, of = _samples(rows)
    sums = samples.numpy()
    sums = sums[sums[:, -1] > 0]
    value, spread = _estimate(measure, sums)
    if not math.isfinite(value):
        return lambda *_: (value, value), "infinite"
    if isinstance(measure, TokenAgreement):
        return _of_share(value, float(spread), sums, of)
    if not spread > 1e-12 * max(1.0, abs(value)):
        same = intervals.without_spread
        return lambda scale, level: same(value, measure.range, len(sums) * scale, level), f"all {of} equal"

    @cache
    def drawn(level: float) -> Interval:
        t = _deviations(measure, sums, seed)
        low, high = measure.range
        lower = value - float(spread) * float(np.quantile(t, level, method="higher"))
        upper = value - float(spread) * float(np.quantile(t, 1 - level, method="lower"))
        return max(lower, low), min(upper, high)

    method = f"bootstrap over {len(sums)} {of}, {intervals.DRAWS} draws"
    return lambda scale, level: intervals.narrowed(value, drawn(level), scale), method


def _samples(rows: Tensor) -> tuple[Tensor, str]:
    """The sums (samples, figures + 1) of independent samples, and what these are."""
    documents = clustered(rows)
    if (rows[:, -1] == NOWHERE).all():
        return documents, "sequences"
    if len(documents) >= FEW:
        return documents, "documents"
    return rows[:, :-1], f"windows of {len(documents)} documents (the bounds speak of these alone)"


def _estimate(measure: _Tokens, sums: np.ndarray) -> tuple[float, float]:
    """The score and its standard error."""
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.ones((1, len(sums)))
        values, errors = _scores(measure, weights @ sums, weights @ _products(sums), len(sums))
    return float(values[0]), float(errors[0])


def _products(sums: np.ndarray) -> np.ndarray:
    """(samples, (figures + 1)^2) products of every sample's sums with one another."""
    return (sums[:, :, None] * sums[:, None, :]).reshape(len(sums), -1)


def _scores(measure: _Tokens, totals: np.ndarray, products: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (draws,) and their standard errors from the totals (draws, figures + 1) of all sums and their products."""
    width = totals.shape[1]
    means = totals[:, :-1] / totals[:, -1:]
    slopes = measure.slopes(means)
    adds = np.concatenate([slopes, -(slopes * means).sum(1, keepdims=True)], 1)  # what a document's sums add
    squares = np.einsum("di,dij,dj->d", adds, products.reshape(-1, width, width), adds)
    errors = np.sqrt(np.maximum(squares, 0) * count / max(count - 1, 1)) / totals[:, -1]
    return measure.of_means(means), errors


def _deviations(measure: _Tokens, sums: np.ndarray, seed: int) -> np.ndarray:
    """Deviations of the score from its value, in standard errors, of samples drawn with replacement."""
    random, count = np.random.default_rng(seed), len(sums)
    value, products = _estimate(measure, sums)[0], _products(sums)
    block, parts = max(1, CHUNK // count), []
    for done in range(0, intervals.DRAWS, block):
        weights = random.multinomial(count, np.full(count, 1 / count), size=min(block, intervals.DRAWS - done))
        weights = weights.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values, errors = _scores(measure, weights @ sums, weights @ products, count)
            parts.append((values - value) / errors)
    t = np.concatenate(parts)
    t[np.isnan(t)] = 0  # no spread, and no deviation either
    return t


def _of_share(share: float, spread: float, sums: np.ndarray, of: str) -> tuple[Bounds, str]:
    """Bounds of a share of tokens: those of as many independent tokens as would have the same standard error."""
    tokens, count = float(sums[:, -1].sum()), len(sums)
    if share in (0.0, 1.0) or count == 1:  # nothing tells how alike the tokens of a document are: it counts once
        effective = float(count)
    else:
        effective = min(tokens, share * (1 - share) / max(spread * spread, 1e-300))

    def bounds(scale: float, level: float) -> Interval:
        independent = effective * scale
        if share not in (0.0, 1.0) and count > 1:  # the standard error itself is known from `count` samples only
            t = scipy.stats.t.ppf
            independent *= float((t(level, max(tokens - 1, 1)) / t(level, max(count * scale - 1, 1))) ** 2)
        low, high = clopper_pearson(share * independent, independent, level)
        return float(low), float(high)

    method = f"Clopper-Pearson, {effective:.0f} independent of {tokens:.0f} tokens, by {count} {of}"
    return bounds, method
