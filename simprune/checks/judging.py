"""From a measure's rows to bounds, and from the bounds of all gates to their outcomes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from simprune.checks import intervals
from simprune.checks.clusters import token_bounds
from simprune.checks.intervals import Interval, clopper_pearson, paired_difference
from simprune.checks.verdict import Gate, GateResult, Outcome
from simprune.functional import Bounds, FunctionalMeasure, Gathered, Score

MOST_SAMPLES = 1e9  # beyond this "more data" is no advice
ON_LIMIT = 1e-9  # a value that is so near to its limit lies on it


@dataclass(frozen=True)
class Case:
    """One gate with its score and bounds."""

    gate: Gate
    score: Score
    bounds: Bounds
    method: str
    larger_is_better: bool

    @classmethod
    def of(cls, gate: Gate, gathered: Gathered, strata: np.ndarray, seed: int) -> Self:
        """From the gate and its measure's rows of all samples, of which `strata` (N,) are resampled separately."""
        measure, rows = gate.build(), gathered.rows
        score, larger_is_better = measure.reduce(rows), measure.larger_is_more_similar
        if not score.defined:
            return cls(gate, score, lambda *_: (math.nan, math.nan), "", larger_is_better)
        bounds, method = _bounds(measure, rows, strata, seed)
        if gathered.columns:
            means = rows.double().mean(0)
            word, worst = ("least", means.argmin()) if larger_is_better else ("most", means.argmax())
            method += f"; {word} in {gathered.columns[int(worst)]}"
        return cls(gate, score, bounds, method, larger_is_better)

    def interval(self, levels: tuple[float, float], scale: float = 1.0) -> Interval:
        """Bounds at two levels of confidence, for failing and for passing, with `scale` times as many samples."""
        (against, for_it) = (self.bounds(scale, level) for level in levels)
        return (for_it[0], against[1]) if self.larger_is_better else (against[0], for_it[1])

    def outcome(self, levels: tuple[float, float], scale: float = 1.0) -> Outcome:
        """The outcome for the same levels and scale as of `interval`; NaN bounds are inconclusive."""
        (lower, upper), limit = self.interval(levels, scale), self.gate.limit
        if self.larger_is_better:
            lower, upper, limit = -upper, -lower, -limit
        return "pass" if upper <= limit else "fail" if lower > limit else "inconclusive"


def judge_together(cases: Sequence[Case], correction: str) -> list[GateResult]:
    """The results of several gates; `correction`: "holm" or "none" (see `simprune.checks.check`)."""
    failing, passing = (_levels(cases, outcome, correction) for outcome in ("fail", "pass"))
    return [_result(case, (fail, ok)) for case, fail, ok in zip(cases, failing, passing, strict=True)]


def _levels(cases: Sequence[Case], wanted: Outcome, correction: str) -> list[float]:
    """Confidence of every gate's bound on one side: the gate's own, or by Holm's steps.

    With k undecided gates, all of them are tried at 1 - (1 - confidence) / k, and the decided ones leave; this repeats
    until none leaves. Passing and failing are two families: a gate can be wrong in one of them only.
    """
    levels = [case.gate.confidence for case in cases]
    left = set(range(len(cases))) if correction == "holm" else set()
    while left:
        for i in left:
            levels[i] = 1 - (1 - cases[i].gate.confidence) / len(left)
        decided = {i for i in left if cases[i].outcome((levels[i], levels[i])) == wanted}
        if not decided:
            break
        left -= decided
    return levels


def _result(case: Case, levels: tuple[float, float]) -> GateResult:
    gate, score, (lower, upper) = case.gate, case.score, case.interval(levels)
    if not score.defined:
        return GateResult(gate, float(score), lower, upper, "inconclusive", score.count, f"undefined: {score.reason}")
    outcome, detail = case.outcome(levels), case.method
    decisive = {"fail": levels[0], "pass": levels[1]}.get(outcome, max(levels))
    if decisive != gate.confidence:
        detail += f"; at {100 * decisive:.4g} % confidence (Holm)"
    if outcome == "inconclusive":
        scale = _deciding_scale(lambda scale: case.outcome(levels, scale) != "inconclusive", MOST_SAMPLES / score.count)
        if math.isclose(score, gate.limit, rel_tol=ON_LIMIT, abs_tol=ON_LIMIT):
            detail += "; the value lies on its limit, where more samples alone would not decide"
        elif scale is None:
            detail += "; at this value more samples alone would not decide"
        else:
            detail += f"; about {math.ceil(score.count * scale)} samples would decide (estimate at this value)"
    if score.skipped:
        detail += f"; {score.skipped} samples skipped"
    if score.reason:
        detail += f"; {score.reason}"
    return GateResult(gate, float(score), lower, upper, outcome, score.count, detail)


def _deciding_scale(decided: Callable[[float], bool], most: float) -> float | None:
    """How many times as many samples would decide, if the value stays the same; None for more than `most` times."""
    low, high = 1.0, 2.0
    while not decided(high):
        low, high = high, 2 * high
        if high > most:
            return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _bounds(measure: FunctionalMeasure, rows: Tensor, strata: np.ndarray, seed: int) -> tuple[Bounds, str]:
    """One-sided bounds, and the method's name."""
    own = measure.bounds(rows, strata, seed)
    if own is not None:
        return own
    if measure.form == "tokens":
        return token_bounds(measure, rows, seed)  # pyright: ignore[reportArgumentType]
    if measure.kind == "worst_difference":
        return _of_worst_class(measure, rows)
    values = measure.values(rows).numpy()
    if values.ndim == 1:
        used = ~np.isnan(values)
        values, strata = values[used], strata[used]
    count = len(values)
    if measure.kind == "rate":
        events = float(values.sum())
        method = f"Clopper-Pearson, {events:.0f} of {count}"
        return lambda scale, level: clopper_pearson(events * scale, count * scale, level), method
    if measure.kind == "difference":
        lost, gained = float((values > 0).sum()), float((values < 0).sum())
        method = f"paired, {lost:.0f} lost and {gained:.0f} gained of {count}"
        return lambda scale, level: paired_difference(lost * scale, gained * scale, count * scale, level), method
    value = float(measure.reduce(rows))
    if math.isinf(value):  # a mean stays so whatever the other samples say; a ratio may have met an empty denominator
        return lambda *_: (value, value) if measure.kind == "mean" else measure.range, "infinite"

    @cache
    def draws() -> np.ndarray:  # the same for all levels
        return intervals.resampled(lambda sample: measure.reduce(torch.from_numpy(sample)), values, strata, seed)

    @cache
    def drawn(level: float) -> Interval:
        return (
            intervals.bootstrap_mean(values, strata, level, seed)
            if measure.kind == "mean"
            else intervals.percentiles(draws(), level)
        )

    low, high = measure.range
    lower, upper = drawn(0.95)
    if not lower < upper:
        return lambda scale, level: intervals.without_spread(
            value, (low, high), count * scale, level
        ), "all samples equal"

    def bounds(scale: float, level: float) -> Interval:
        lower, upper = drawn(level)
        return intervals.narrowed(value, (max(lower, low), min(upper, high)), scale)

    return bounds, f"bootstrap, {intervals.DRAWS} draws{', stratified by class' if strata.any() else ''}"


def _of_worst_class(measure: FunctionalMeasure, rows: Tensor) -> tuple[Bounds, str]:
    details = measure.reduce(rows).details
    lost, gained, count = (np.array(details[key], dtype=np.float64) for key in ("lost", "gained", "count"))
    worst = int(np.argmax((lost - gained) / count))
    which = f"class {details['classes'][worst]}: {lost[worst]:.0f} lost and {gained[worst]:.0f} gained"
    method = f"paired, {len(count)} classes (Holm), worst is {which} of {count[worst]:.0f}"

    def bounds(scale: float, level: float) -> Interval:
        lower = paired_difference(lost * scale, gained * scale, count * scale, intervals.together(level, len(count)))[0]
        upper = paired_difference(lost * scale, gained * scale, count * scale, level)[1]
        return float(lower.max()), float(upper.max())

    return bounds, method
