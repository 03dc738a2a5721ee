"""Gates: does the pruned model still behave like the original, given how many samples there are to tell?"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Literal, Self

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import beta
from torch import Tensor, nn

from simprune.batches import call, checked, evaluation, labels_of
from simprune.functional import FunctionalMeasure, Outputs, get

Outcome = Literal["pass", "fail", "inconclusive"]
Interval = tuple[float, float]

DRAWS = 2000  # of the bootstrap
CHUNK = 1 << 21  # numbers that the bootstrap holds at once
STRATIFY_BELOW = 30  # samples per class
RARE_CLASS = 5  # smaller classes share a stratum: alone they would show no spread
MOST_SAMPLES = 1e9  # beyond this "more data" is no advice


@dataclass(frozen=True)
class Gate:
    """A limit for one functional measure, to be met by its one-sided bound at `confidence`.

    An upper limit, or a lower one for measures where larger is more similar. `options` are the measure's
    hyperparameters. KeyError for an unknown measure, ValueError for a bad limit, confidence or option.

    >>> Gate("disagreement", limit=0.05).measure
    'disagreement'
    """

    measure: str
    limit: float
    confidence: float = 0.95
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.build()
        if not isinstance(self.limit, int | float) or not math.isfinite(self.limit):
            raise ValueError(f"the limit of {self.measure} must be a finite number; got {self.limit!r}")
        if not isinstance(self.confidence, int | float) or not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), such as 0.95; got {self.confidence!r}")

    def build(self) -> FunctionalMeasure:
        return get(self.measure, **self.options)


DEFAULT_GATES = (
    Gate("accuracy_drop", limit=0.02),
    Gate("disagreement", limit=0.05),
    Gate("jensen_shannon_divergence", limit=0.05),
)


@dataclass(frozen=True)
class GateResult:
    """What one gate found: value, two one-sided bounds, outcome, samples used, and how it was decided."""

    gate: Gate
    value: float
    lower: float
    upper: float
    outcome: Outcome
    count: int
    detail: str


@dataclass(frozen=True)
class Verdict:
    """All gates' results on `count` samples: fail if one fails, pass if all pass, else inconclusive."""

    results: tuple[GateResult, ...]
    count: int
    notes: tuple[str, ...] = ()
    seed: int = 0

    @property
    def outcome(self) -> Outcome:
        outcomes = {result.outcome for result in self.results}
        if "fail" in outcomes:
            return "fail"
        return "pass" if outcomes == {"pass"} else "inconclusive"

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"

    def table(self, width: int = 100) -> str:
        """Plain-text table, at most `width` characters wide, with lines below on how gates were decided."""
        title = f"{self.outcome.upper()} on {self.count} samples"
        table = Table(box=box.ASCII2, title=title, title_justify="left")
        for column in ("check", "value", "lower", "upper", "limit", "outcome"):
            justify = "left" if column in ("check", "outcome") else "right"
            table.add_column(column, justify=justify, overflow="fold")
        for r in self.results:
            sign = ">=" if r.gate.build().larger_is_more_similar else "<="
            numbers = (f"{r.value:.4g}", f"{r.lower:.4g}", f"{r.upper:.4g}", f"{sign} {r.gate.limit:.4g}")
            table.add_row(r.gate.measure, *numbers, r.outcome)
        text = StringIO()
        console = Console(file=text, width=width, color_system=None, markup=False, highlight=False, emoji=False)
        console.print(table)
        for line in [*(f"{r.gate.measure}: {r.detail}" for r in self.results), *self.notes]:
            console.print(line)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; NaN becomes None and infinity "inf"."""
        gates = [
            {
                "measure": r.gate.measure,
                "options": dict(r.gate.options),
                "value": _to_json(r.value),
                "lower": _to_json(r.lower),
                "upper": _to_json(r.upper),
                "limit": r.gate.limit,
                "confidence": r.gate.confidence,
                "outcome": r.outcome,
                "count": r.count,
                "detail": r.detail,
            }
            for r in self.results
        ]
        return {
            "outcome": self.outcome,
            "count": self.count,
            "seed": self.seed,
            "gates": gates,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        results = tuple(
            GateResult(
                gate=Gate(g["measure"], g["limit"], g["confidence"], dict(g["options"])),
                value=_from_json(g["value"]),
                lower=_from_json(g["lower"]),
                upper=_from_json(g["upper"]),
                outcome=g["outcome"],
                count=g["count"],
                detail=g["detail"],
            )
            for g in data["gates"]
        )
        return cls(results, data["count"], tuple(data["notes"]), data["seed"])


def _to_json(value: float) -> float | str | None:
    return None if math.isnan(value) else float(value) if math.isfinite(value) else str(float(value))


def _from_json(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def validate(
    model: nn.Module, small: nn.Module, test: Iterable, gates: Sequence[Gate] | None = None, seed: int = 0
) -> Verdict:
    """Verdict on whether `small` may replace `model`, from both models' logits on the batches of `test`.

    Models may be on any devices; they run in evaluation and inference mode and get their modes back.
    ValueError for an empty test set, outputs that are not (N, C) logits, or missing labels of some batches.
    """
    outputs: tuple[list[Tensor], list[Tensor]] = ([], [])
    labels: list[Tensor | None] = []
    with evaluation(model, small):
        for batch in checked(test, "test"):
            for network, kept in zip((model, small), outputs, strict=True):
                kept.append(call(network, batch).cpu())
            labels.append(labels_of(batch))
    if not labels:
        raise ValueError("the test set is empty; pass at least one batch")
    for kept in outputs:
        if len(shapes := {logits.shape[1:] for logits in kept}) > 1 or kept[0].ndim != 2:
            raise ValueError(f"validate needs logits (N, C), the same C in all batches; got {sorted(shapes)}")
    given = [y.cpu() for y in labels if y is not None]
    if given and len(given) < len(labels):
        raise ValueError(f"{len(given)} of {len(labels)} test batches have labels; give labels to all or none")
    logits_a, logits_b = (torch.cat(kept) for kept in outputs)
    return check(logits_a, logits_b, torch.cat(given) if given else None, gates, seed)


def check(
    logits_a: Any, logits_b: Any, labels: Any = None, gates: Sequence[Gate] | None = None, seed: int = 0
) -> Verdict:
    """Verdict of the gates (`DEFAULT_GATES`) on logits (N, C) of a, the original, and b, the pruned model.

    Instead of logits also `Outputs`. ValueError for bad outputs or labels, or no gate.

    >>> logits = torch.eye(3).repeat(100, 1)
    >>> check(logits, logits, torch.arange(3).repeat(100)).outcome
    'pass'
    """
    notes = ()
    if gates is None:
        gates = [gate for gate in DEFAULT_GATES if labels is not None or not gate.build().needs_labels]
        left_out = [gate.measure for gate in DEFAULT_GATES if gate not in gates]
        notes = tuple(f"no labels: {name} was left out" for name in left_out)
    if not gates:
        raise ValueError("there is no gate to check; pass at least one, or gates=None for the default ones")
    a, b = Outputs.of(logits_a, "logits_a"), Outputs.of(logits_b, "logits_b")
    results = []
    for gate in gates:
        rows = gate.build().per_sample([a, b], labels)
        results.append(judge(gate, rows, _strata(labels, a.shape), seed))
    return Verdict(tuple(results), a.shape[0], notes, seed)


def judge(gate: Gate, rows: Tensor, strata: np.ndarray, seed: int = 0) -> GateResult:
    """Result of one gate from its measure's rows of all samples; `strata` (N,) are resampled separately."""
    measure = gate.build()
    score = measure.reduce(rows)
    if not score.defined:
        nan = math.nan
        return GateResult(gate, nan, nan, nan, "inconclusive", score.count, f"undefined: {score.reason}")
    bounds, detail = _bounds(measure, rows, strata, gate.confidence, seed)
    lower, upper = bounds(1.0)
    outcome = _outcome((lower, upper), gate.limit, measure.larger_is_more_similar)
    if outcome == "inconclusive":
        scale = _deciding_scale(bounds, gate, MOST_SAMPLES / score.count)
        if scale is None:
            detail += "; at this value more samples alone would not decide"
        else:
            detail += f"; about {math.ceil(score.count * scale)} samples would decide (estimate at this value)"
    if score.skipped:
        detail += f"; {score.skipped} samples skipped"
    if score.reason:
        detail += f"; {score.reason}"
    return GateResult(gate, float(score), lower, upper, outcome, score.count, detail)


def _outcome(interval: Interval, limit: float, larger_is_better: bool) -> Outcome:
    lower, upper = interval
    if larger_is_better:
        lower, upper, limit = -upper, -lower, -limit
    return "pass" if upper <= limit else "fail" if lower > limit else "inconclusive"  # NaN: inconclusive


def _deciding_scale(bounds: Callable[[float], Interval], gate: Gate, most: float) -> float | None:
    """How many times as many samples would decide, if the value stays; None beyond `most`."""
    larger_is_better = gate.build().larger_is_more_similar

    def decided(scale: float) -> bool:
        return _outcome(bounds(scale), gate.limit, larger_is_better) != "inconclusive"

    low, high = 1.0, 2.0
    while not decided(high):
        low, high = high, 2 * high
        if high > most:
            return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _bounds(
    measure: FunctionalMeasure, rows: Tensor, strata: np.ndarray, confidence: float, seed: int
) -> tuple[Callable[[float], Interval], str]:
    """One-sided bounds by `scale` (1: these samples, 2: twice as many like them), and the method's name."""
    values = measure.values(rows).numpy()
    if values.ndim == 1:
        used = ~np.isnan(values)
        values, strata = values[used], strata[used]
    count = len(values)
    if measure.kind == "rate":
        events = float(values.sum())
        method = f"Clopper-Pearson, {events:.0f} of {count}"
        return lambda scale: clopper_pearson(events * scale, count * scale, confidence), method
    if measure.kind == "difference":
        lost, gained = float((values > 0).sum()), float((values < 0).sum())
        method = f"paired, {lost:.0f} lost and {gained:.0f} gained of {count}"
        return lambda s: paired_difference(lost * s, gained * s, count * s, confidence), method
    value = float(measure.reduce(rows))
    if math.isinf(value):  # a mean stays so whatever the other samples say; a ratio may have met an empty denominator
        return lambda _: (value, value) if measure.kind == "mean" else measure.range, "infinite"
    if measure.kind == "mean":
        lower, upper = bootstrap_mean(values, strata, confidence, seed)
    else:
        lower, upper = bootstrap_statistic(
            lambda sample: measure.reduce(torch.from_numpy(sample)), values, strata, confidence, seed
        )
    low, high = measure.range
    if not lower < upper:
        return lambda s: _without_spread(value, (low, high), count * s, confidence), "all samples equal"
    below, above = value - max(lower, low), min(upper, high) - value
    method = f"bootstrap, {DRAWS} draws{', stratified by class' if strata.any() else ''}"
    return lambda scale: (value - below / math.sqrt(scale), value + above / math.sqrt(scale)), method


def clopper_pearson(events: float, count: float, confidence: float) -> Interval:
    """Exact lower and upper bounds of a rate, each one-sided at `confidence`.

    >>> round(clopper_pearson(0, 300, 0.95)[1], 5)
    0.00994
    """
    lower = float(beta.ppf(1 - confidence, events, count - events + 1)) if events > 0 else 0.0
    upper = float(beta.ppf(confidence, events + 1, count - events)) if events < count else 1.0
    return lower, upper


def paired_difference(lost: float, gained: float, count: float, confidence: float) -> Interval:
    """One-sided bounds of (lost - gained) / count, where lost and gained samples exclude each other.

    Clopper-Pearson bounds of both rates, joined by the method of variance estimates recovery (Zou and
    Donner 2008) with the correlation of exclusive events. With many flips this is the interval from the
    paired standard error; with few, where that is far too narrow, it holds; with none, Clopper-Pearson.
    """
    p, q = lost / count, gained / count
    (p_low, p_high), (q_low, q_high) = (clopper_pearson(k, count, confidence) for k in (lost, gained))
    correlation = math.sqrt(p * q / ((1 - p) * (1 - q))) if p * q > 0 else 0.0

    def half(x: float, y: float) -> float:
        return math.sqrt(x * x + y * y + 2 * correlation * x * y)

    return p - q - half(p - p_low, q_high - q), p - q + half(p_high - p, q - q_low)


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


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    rows: np.ndarray,
    strata: np.ndarray,
    confidence: float,
    seed: int,
) -> Interval:
    """One-sided bounds of any statistic of the rows by the percentile bootstrap within strata.

    A draw with an undefined statistic counts as the worst on both sides.
    """
    order, sizes, starts = _layout(strata)
    rows = rows[order]
    draws = np.array([statistic(rows[index]) for block in _resamples(sizes, starts, seed) for index in block])
    undefined = np.isnan(draws)
    lower = np.quantile(np.where(undefined, -np.inf, draws), 1 - confidence, method="lower")
    upper = np.quantile(np.where(undefined, np.inf, draws), confidence, method="higher")
    return float(lower), float(upper)


def _without_spread(value: float, limits: Interval, count: float, confidence: float) -> Interval:
    """Bounds when all samples are equal: as many as Clopper-Pearson allows may still differ, fully.

    Where the range is infinite, one sample says nothing; with more, the bound is the value.
    """
    unseen = clopper_pearson(0, count, confidence)[1]

    def towards(end: float) -> float:
        if math.isfinite(end):
            return value + (end - value) * unseen
        return value if count > 1 else end

    return towards(limits[0]), towards(limits[1])


def _strata(labels: Any, shape: tuple[int, int]) -> np.ndarray:
    """Stratum per sample: its class where classes are small (rare ones share stratum 0), else 0 for all."""
    count, classes = shape
    if labels is None or count / classes >= STRATIFY_BELOW:
        return np.zeros(count, dtype=np.int64)
    labels = torch.as_tensor(labels).cpu().numpy().astype(np.int64)
    common = np.bincount(labels)[labels] >= RARE_CLASS
    return np.where(common, labels + 1, 0)


def _layout(strata: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order that puts strata side by side, their sizes, and where each starts."""
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
