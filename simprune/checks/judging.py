"""From a measure's rows to bounds, and from the bounds of all gates to their outcomes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from simprune.checks.intervals import (
    DRAWS,
    Interval,
    bootstrap_mean,
    clopper_pearson,
    narrowed,
    paired_difference,
    percentiles,
    resampled,
    together,
    without_spread,
)
from simprune.checks.verdict import Gate, GateResult, Outcome
from simprune.functional import Bounds, FunctionalMeasure, Score

MOST_SAMPLES = 1e9  # beyond this "more data" is no advice


def judge(gate: Gate, rows: Tensor, strata: np.ndarray, seed: int = 0) -> GateResult:
    """Result of one gate from its measure's rows of all samples; `strata` (N,) are resampled separately."""
    return judge_together([Case.of(gate, gate.build(), rows, strata, seed)], "none")[0]


@dataclass(frozen=True)
class Case:
    """One gate with its score and bounds."""

    gate: Gate
    score: Score
    bounds: Bounds
    method: str
    larger_is_better: bool

    @classmethod
    def of(
        cls,
        gate: Gate,
        measure: FunctionalMeasure,
        rows: Tensor,
        strata: np.ndarray,
        seed: int,
        columns: Sequence[str] = (),
    ) -> Self:
        """From the measure's rows; `columns` names the rows' columns where the score is that of the worst one."""
        score = measure.reduce(rows)
        bounds, method = _bounds(measure, rows, strata, seed) if score.defined else (_unknown, "")
        if columns and score.defined:
            means = rows.double().mean(0)
            worst = means.argmin() if measure.larger_is_more_similar else means.argmax()
            method += f"; {'least' if measure.larger_is_more_similar else 'most'} in {columns[int(worst)]}"
        return cls(gate, score, bounds, method, measure.larger_is_more_similar)

    def interval(self, levels: tuple[float, float], scale: float = 1.0) -> Interval:
        """Bounds at the confidence for failing and the one for passing."""
        (against, for_it) = (self.bounds(scale, level) for level in levels)
        return (for_it[0], against[1]) if self.larger_is_better else (against[0], for_it[1])

    def outcome(self, levels: tuple[float, float], scale: float = 1.0) -> Outcome:
        return _outcome(self.interval(levels, scale), self.gate.limit, self.larger_is_better)


def _unknown(scale: float, confidence: float) -> Interval:
    return math.nan, math.nan


def judge_together(cases: Sequence[Case], correction: str) -> list[GateResult]:
    failing, passing = (_levels(cases, outcome, correction) for outcome in ("fail", "pass"))
    return [_result(case, levels) for case, *levels in zip(cases, failing, passing, strict=True)]


def _levels(cases: Sequence[Case], wanted: Outcome, correction: str) -> list[float]:
    """Confidence of every gate's bound on one side: its own, or by Holm's steps.

    With k gates left, each is tried at 1 - (1 - confidence) / k; those decided leave, until none is. Passing and
    failing are two families: a gate can be wrong in one of them only.
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


def _result(case: Case, levels: list[float]) -> GateResult:
    gate, score = case.gate, case.score
    if not score.defined:
        nan = math.nan
        return GateResult(gate, nan, nan, nan, "inconclusive", score.count, f"undefined: {score.reason}")
    at = (levels[0], levels[1])
    outcome, detail = case.outcome(at), case.method
    decisive = {"fail": levels[0], "pass": levels[1]}.get(outcome, max(levels))
    if decisive != gate.confidence:
        detail += f"; at {100 * decisive:.4g} % confidence (Holm)"
    if outcome == "inconclusive":
        scale = _deciding_scale(lambda scale: case.outcome(at, scale) != "inconclusive", MOST_SAMPLES / score.count)
        if scale is None:
            detail += "; at this value more samples alone would not decide"
        else:
            detail += f"; about {math.ceil(score.count * scale)} samples would decide (estimate at this value)"
    if score.skipped:
        detail += f"; {score.skipped} samples skipped"
    if score.reason:
        detail += f"; {score.reason}"
    lower, upper = case.interval(at)
    return GateResult(gate, float(score), lower, upper, outcome, score.count, detail)


def _outcome(interval: Interval, limit: float, larger_is_better: bool) -> Outcome:
    lower, upper = interval
    if larger_is_better:
        lower, upper, limit = -upper, -lower, -limit
    return "pass" if upper <= limit else "fail" if lower > limit else "inconclusive"  # NaN: inconclusive


def _deciding_scale(decided: Callable[[float], bool], most: float) -> float | None:
    """How many times as many samples would decide, if the value stays; None beyond `most`."""
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
        return resampled(lambda sample: measure.reduce(torch.from_numpy(sample)), values, strata, seed)

    @cache
    def drawn(level: float) -> Interval:
        return bootstrap_mean(values, strata, level, seed) if measure.kind == "mean" else percentiles(draws(), level)

    low, high = measure.range
    lower, upper = drawn(0.95)
    if not lower < upper:
        return lambda scale, level: without_spread(value, (low, high), count * scale, level), "all samples equal"

    def bounds(scale: float, level: float) -> Interval:
        lower, upper = drawn(level)
        return narrowed(value, (max(lower, low), min(upper, high)), scale)

    return bounds, f"bootstrap, {DRAWS} draws{', stratified by class' if strata.any() else ''}"


def _of_worst_class(measure: FunctionalMeasure, rows: Tensor) -> tuple[Bounds, str]:
    found = measure.reduce(rows).details
    lost, gained, count = (np.array(found[key], dtype=np.float64) for key in ("lost", "gained", "count"))
    worst = int(np.argmax((lost - gained) / count))
    which = f"class {found['classes'][worst]}: {lost[worst]:.0f} lost and {gained[worst]:.0f} gained"
    method = f"paired, {len(count)} classes (Holm), worst is {which} of {count[worst]:.0f}"

    def bounds(scale: float, level: float) -> Interval:
        lower = paired_difference(lost * scale, gained * scale, count * scale, together(level, len(count)))[0]
        upper = paired_difference(lost * scale, gained * scale, count * scale, level)[1]
        return float(lower.max()), float(upper.max())

    return bounds, method
