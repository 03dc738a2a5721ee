"""Gates: does the pruned model still behave like the original, given how many samples there are to tell?"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from typing import Any, Literal, Self

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import beta
from torch import Tensor, nn

from simprune import corruptions
from simprune.batches import call, checked, evaluation, labels_of
from simprune.drift import BlockDrift
from simprune.functional import FunctionalMeasure, Outputs, Score, get
from simprune.functional.classwise import MaxClassRecallDrop
from simprune.names import did_you_mean

Outcome = Literal["pass", "fail", "inconclusive"]
Interval = tuple[float, float]
Bounds = Callable[[float, float], Interval]  # (scale, confidence): scale 2 is twice as many samples like these
Watch = Callable[[Any, Tensor, Tensor, Tensor | None], None]  # (batch, outputs of a, outputs of b, labels)

DRAWS = 2000  # of the bootstrap
CHUNK = 1 << 21  # numbers that the bootstrap holds at once
STRATIFY_BELOW = 30  # samples per class
RARE_CLASS = 5  # smaller classes share a stratum: alone they would show no spread
MOST_SAMPLES = 1e9  # beyond this "more data" is no advice
CORRECTIONS = ("holm", "none")
SHAPES = {"classes": "class scores (N, C)", "tokens": "token logits (N, T, C)", "multilabel": "logits (N, L)"}


@dataclass(frozen=True)
class Gate:
    """A limit for one functional measure, to be met by its one-sided bound at `confidence`.

    An upper limit, or a lower one for measures where larger is more similar. `options` are the measure's
    hyperparameters. `inputs`: "clean", or how test images are shifted first, one of `simprune.corruptions.names()`.
    The measure is a functional one, or "block_drift" (`simprune.drift`). KeyError for an unknown measure, ValueError
    for a bad limit, confidence, option or inputs.

    >>> Gate("disagreement", limit=0.05).measure
    'disagreement'
    """

    measure: str
    limit: float
    confidence: float = 0.95
    options: dict[str, Any] = field(default_factory=dict)
    inputs: str = corruptions.CLEAN

    def __post_init__(self) -> None:
        self.build()
        corruptions.known(self.inputs)
        if self.measure == "block_drift" and self.inputs != corruptions.CLEAN:
            raise ValueError(f"block_drift is measured on clean inputs; got inputs={self.inputs!r}")
        if not isinstance(self.limit, int | float) or not math.isfinite(self.limit):
            raise ValueError(f"the limit of {self.measure} must be a finite number; got {self.limit!r}")
        if not isinstance(self.confidence, int | float) or not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), such as 0.95; got {self.confidence!r}")

    def build(self) -> FunctionalMeasure:
        if self.measure != "block_drift":
            return get(self.measure, **self.options)
        for key in self.options:
            if key not in BlockDrift.__dataclass_fields__:
                raise ValueError(
                    f"block_drift does not take {key}; {did_you_mean(key, BlockDrift.__dataclass_fields__)}"
                )
        return BlockDrift(**self.options)

    @property
    def label(self) -> str:
        return self.measure if self.inputs == corruptions.CLEAN else f"{self.measure} on {self.inputs}"


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
            table.add_row(r.gate.label, *numbers, r.outcome)
        text = StringIO()
        console = Console(file=text, width=width, color_system=None, markup=False, highlight=False, emoji=False)
        console.print(table)
        for line in [*(f"{r.gate.label}: {r.detail}" for r in self.results), *self.notes]:
            console.print(line)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; NaN becomes None and infinity "inf"."""
        gates = [
            {
                "measure": r.gate.measure,
                "options": dict(r.gate.options),
                "inputs": r.gate.inputs,
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
                gate=Gate(g["measure"], g["limit"], g["confidence"], dict(g["options"]), g["inputs"]),
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
    model: nn.Module,
    small: nn.Module,
    test: Iterable,
    gates: Sequence[Gate] | None = None,
    seed: int = 0,
    correction: str = "holm",
    watch: Watch | None = None,
) -> Verdict:
    """Verdict on whether `small` may replace `model`, from both models' outputs on the batches of `test`.

    Batch by batch: outputs are not kept, except for measures that need all at once. `watch` sees every batch and both
    outputs. Models may be on any devices; they run in evaluation and inference mode and get their modes back.
    `gates`, `correction`: as of `check`. ValueError for an empty test set, outputs that do not fit a gate's measure,
    or missing labels of some batches.
    """
    batches = checked(test, "test")
    tally: _Tally | None = None
    limits: corruptions.Limits | None = None
    with evaluation(model, small):
        for number, batch in enumerate(batches):
            labels = labels_of(batch)
            tally = tally or _Tally(gates, labels is not None, correction)
            for inputs in tally.inputs:
                if inputs != corruptions.CLEAN:
                    limits = limits or corruptions.limits_of(batch)
                seen = [
                    batch if limits is None else corruptions.shifted(inputs, batch, network, limits, seed + number)
                    for network in (model, small)
                ]
                a, b = (call(network, each).cpu() for network, each in zip((model, small), seen, strict=True))
                tally.update(a, b, labels, inputs)
                if watch is not None and inputs == corruptions.CLEAN:
                    watch(batch, a, b, labels)
    if tally is None:
        raise ValueError("the test set is empty; pass at least one batch")
    drifts = {i: drift.of(model, small, batches) for i, drift in tally.drifts.items()}
    return tally.verdict(seed, drifts)


def check(
    logits_a: Any,
    logits_b: Any,
    labels: Any = None,
    gates: Sequence[Gate] | None = None,
    seed: int = 0,
    correction: str = "holm",
) -> Verdict:
    """Verdict of the gates (`DEFAULT_GATES`) on outputs of a, the original, and b, the pruned model.

    Logits (N, C), `Outputs`, or what the gates' measures take. `correction`: "holm", so that with the gates'
    confidence *all* gates that pass do so rightly, and all that fail (Holm 1979, once for either side); or "none",
    every gate on its own. ValueError for bad outputs or labels, or no gate.

    >>> logits = torch.eye(3).repeat(100, 1)
    >>> check(logits, logits, torch.arange(3).repeat(100)).outcome
    'pass'
    """
    tally = _Tally(gates, labels is not None, correction)
    for i, gate in enumerate(tally.gates):
        if i in tally.drifts or gate.inputs != corruptions.CLEAN:
            raise ValueError(f"{gate.label} needs the models, not only their outputs; use validate")
    tally.update(logits_a, logits_b, None if labels is None else torch.as_tensor(labels))
    return tally.verdict(seed)


class _Tally:
    """What the gates need of every batch: rows of their measures, and the labels for strata."""

    def __init__(self, gates: Sequence[Gate] | None, labelled: bool, correction: str) -> None:
        if correction not in CORRECTIONS:
            raise ValueError(f"correction: unknown {correction!r}; {did_you_mean(str(correction), CORRECTIONS)}")
        self.notes: tuple[str, ...] = ()
        if gates is None:
            gates = [gate for gate in DEFAULT_GATES if labelled or not gate.build().needs_labels]
            left_out = [gate.measure for gate in DEFAULT_GATES if gate not in gates]
            self.notes = tuple(f"no labels: {name} was left out" for name in left_out)
        if not gates:
            raise ValueError("there is no gate to check; pass at least one, or gates=None for the default ones")
        self.gates, self.correction, self.labelled = list(gates), correction, labelled
        self.measures = [gate.build() for gate in gates]
        self.streams = [measure.stream() for measure in self.measures]
        self.drifts = {i: measure for i, measure in enumerate(self.measures) if isinstance(measure, BlockDrift)}
        shifts = {gate.inputs for gate in gates} - {corruptions.CLEAN}
        self.inputs = [corruptions.CLEAN, *sorted(shifts)]
        self.labels: list[Tensor] = []
        self.count, self.classes, self.batches = 0, 0, 0

    def update(self, a: Any, b: Any, labels: Tensor | None, inputs: str = corruptions.CLEAN) -> None:
        """Add one batch's outputs of both models on these inputs."""
        if inputs == corruptions.CLEAN:
            self._count(a, labels)
        class_scores: tuple[Outputs, Outputs] | None = None  # in float64, softmax and all, once for all gates
        for gate, measure, stream in zip(self.gates, self.measures, self.streams, strict=True):
            if gate.inputs != inputs or isinstance(measure, BlockDrift):
                continue
            self._fits(measure, a)
            if measure.form == "classes":
                class_scores = class_scores or (Outputs.of(a, "logits_a"), Outputs.of(b, "logits_b"))
                stream.update(class_scores, labels)
            else:
                stream.update((a, b), labels)

    def _count(self, a: Any, labels: Tensor | None) -> None:
        self.batches += 1
        if (labels is not None) != self.labelled:
            found = self.batches - 1 if self.labelled else 1
            raise ValueError(f"{found} of {self.batches} test batches have labels; give labels to all or none")
        shape = tuple(getattr(a, "shape", None) or torch.as_tensor(a).shape)
        self.count += shape[0] if shape else 0
        self.classes = shape[1] if len(shape) == 2 else 0
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            self.labels.append(labels.detach().cpu().to(torch.int64, copy=True))

    def _fits(self, measure: FunctionalMeasure, a: Any) -> None:
        dimensions = {"classes": 2, "tokens": 3, "multilabel": 2}.get(measure.form)
        if isinstance(a, Tensor) and dimensions is not None and a.ndim != dimensions:
            raise ValueError(
                f"{measure.id} needs {SHAPES[measure.form]}; the models' outputs have shape {tuple(a.shape)}: choose a "
                "check set for them (default, embedding, language_model)"
            )

    def _strata(self) -> np.ndarray:
        labels = torch.cat(self.labels) if self.labels else None
        if labels is None or len(labels) != self.count or not self.classes:
            return np.zeros(self.count, dtype=np.int64)
        return _strata(labels, (self.count, self.classes))

    def verdict(self, seed: int, drifts: Mapping[int, tuple[Tensor, tuple[str, ...]]] | None = None) -> Verdict:
        strata, cases = self._strata(), []
        for i, (gate, measure) in enumerate(zip(self.gates, self.measures, strict=True)):
            if drifts and i in drifts:
                rows, names = drifts[i]
                cases.append(_Case.of(gate, measure, rows, np.zeros(len(rows), dtype=np.int64), seed, names))
            else:
                rows = self.streams[i].rows()
                cases.append(_Case.of(gate, measure, rows, strata, seed))
        return Verdict(tuple(_judge(cases, self.correction)), self.count, self.notes, seed)


def judge(gate: Gate, rows: Tensor, strata: np.ndarray, seed: int = 0) -> GateResult:
    """Result of one gate from its measure's rows of all samples; `strata` (N,) are resampled separately."""
    return _judge([_Case.of(gate, gate.build(), rows, strata, seed)], "none")[0]


@dataclass(frozen=True)
class _Case:
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
        names: Sequence[str] = (),
    ) -> Self:
        score = measure.reduce(rows)
        bounds, method = _bounds(measure, rows, strata, seed) if score.defined else (_unknown, "")
        if names and score.defined:
            drift = score.details["drift"]
            method += f"; most in {names[drift.index(max(drift))]}"
        return cls(gate, score, bounds, method, measure.larger_is_more_similar)

    def interval(self, levels: tuple[float, float], scale: float = 1.0) -> Interval:
        """Bounds at the confidence for failing and the one for passing."""
        (against, for_it) = (self.bounds(scale, level) for level in levels)
        return (for_it[0], against[1]) if self.larger_is_better else (against[0], for_it[1])

    def outcome(self, levels: tuple[float, float], scale: float = 1.0) -> Outcome:
        return _outcome(self.interval(levels, scale), self.gate.limit, self.larger_is_better)


def _unknown(scale: float, confidence: float) -> Interval:
    return math.nan, math.nan


def _judge(cases: Sequence[_Case], correction: str) -> list[GateResult]:
    failing, passing = (_levels(cases, outcome, correction) for outcome in ("fail", "pass"))
    return [_result(case, levels) for case, *levels in zip(cases, failing, passing, strict=True)]


def _levels(cases: Sequence[_Case], wanted: Outcome, correction: str) -> list[float]:
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


def _result(case: _Case, levels: list[float]) -> GateResult:
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
    if isinstance(measure, MaxClassRecallDrop):
        return _of_worst_class(measure, rows)
    if isinstance(measure, BlockDrift):
        return _of_worst_block(rows, seed)
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
    def drawn(level: float) -> Interval:
        if measure.kind == "mean":
            return bootstrap_mean(values, strata, level, seed)
        return bootstrap_statistic(lambda sample: measure.reduce(torch.from_numpy(sample)), values, strata, level, seed)

    low, high = measure.range
    lower, upper = drawn(0.95)
    if not lower < upper:
        return lambda scale, level: _without_spread(value, (low, high), count * scale, level), "all samples equal"

    def bounds(scale: float, level: float) -> Interval:
        lower, upper = drawn(level)
        return _narrowed(value, (max(lower, low), min(upper, high)), scale)

    return bounds, f"bootstrap, {DRAWS} draws{', stratified by class' if strata.any() else ''}"


def _narrowed(value: float, interval: Interval, scale: float) -> Interval:
    """The interval that `scale` times as many samples would give."""
    root = math.sqrt(scale)
    return value - (value - interval[0]) / root, value + (interval[1] - value) / root


def _together(level: float, parts: int) -> float:
    """Confidence of each of several lower bounds that hold together.

    The largest of several values is bounded from below by the largest of their bounds at this confidence: the step of
    Holm's that decides whether any of them is above a limit. From above no correction is needed: it is bounded by the
    largest of their bounds, as the bound of the worst one is among them.
    """
    return 1 - (1 - level) / parts


def _of_worst_class(measure: MaxClassRecallDrop, rows: Tensor) -> tuple[Bounds, str]:
    found = measure.reduce(rows).details
    lost, gained, count = (np.array(found[key], dtype=np.float64) for key in ("lost", "gained", "count"))
    worst = int(np.argmax((lost - gained) / count))
    which = f"class {found['classes'][worst]}: {lost[worst]:.0f} lost and {gained[worst]:.0f} gained"
    method = f"paired, {len(count)} classes (Holm), worst is {which} of {count[worst]:.0f}"

    def bounds(scale: float, level: float) -> Interval:
        lower = paired_difference(lost * scale, gained * scale, count * scale, _together(level, len(count)))[0]
        upper = paired_difference(lost * scale, gained * scale, count * scale, level)[1]
        return float(lower.max()), float(upper.max())

    return bounds, method


def _of_worst_block(rows: Tensor, seed: int) -> tuple[Bounds, str]:
    """Every block's mean over groups of inputs."""
    one = np.zeros(len(rows), dtype=np.int64)

    def of(values: np.ndarray) -> Bounds:
        value, same = float(values.mean()), bool(np.ptp(values) < 1e-12)
        drawn = cache(lambda level: bootstrap_mean(values, one, level, seed))

        def bounds(scale: float, level: float) -> Interval:
            if len(values) == 1:
                return -math.inf, math.inf
            return (value, value) if same else _narrowed(value, drawn(level), scale)

        return bounds

    parts = [of(column) for column in rows.numpy().T]

    def worst(scale: float, level: float) -> Interval:
        together = _together(level, len(parts))
        return max(part(scale, together)[0] for part in parts), max(part(scale, level)[1] for part in parts)

    return worst, f"bootstrap over {len(rows)} groups of inputs"


def clopper_pearson(events: Any, count: Any, confidence: float) -> tuple[Any, Any]:
    """Exact lower and upper bounds of a rate, each one-sided at `confidence`; of many rates for arrays.

    >>> print(round(clopper_pearson(0, 300, 0.95)[1], 5))
    0.00994
    """
    events, count = np.asarray(events, dtype=np.float64), np.asarray(count, dtype=np.float64)
    lower = np.where(events > 0, beta.ppf(1 - confidence, np.maximum(events, 1e-300), count - events + 1), 0.0)
    upper = np.where(events < count, beta.ppf(confidence, events + 1, np.maximum(count - events, 1e-300)), 1.0)
    return lower[()], upper[()]


def paired_difference(lost: Any, gained: Any, count: Any, confidence: float) -> tuple[Any, Any]:
    """One-sided bounds of (lost - gained) / count, where lost and gained samples exclude each other.

    Clopper-Pearson bounds of both rates, joined by the method of variance estimates recovery (Zou and
    Donner 2008) with the correlation of exclusive events. With many flips this is the interval from the
    paired standard error; with few, where that is far too narrow, it holds; with none, Clopper-Pearson.
    Numbers, or arrays for many differences at once.
    """
    lost, gained, count = (np.asarray(each, dtype=np.float64) for each in (lost, gained, count))
    p, q = lost / count, gained / count
    (p_low, p_high), (q_low, q_high) = (clopper_pearson(k, count, confidence) for k in (lost, gained))
    both = p * q > 0
    correlation = np.sqrt(np.where(both, p * q / np.where(both, (1 - p) * (1 - q), 1.0), 0.0))

    def half(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(x * x + y * y + 2 * correlation * x * y)

    return (p - q - half(p - p_low, q_high - q))[()], (p - q + half(p_high - p, q - q_low))[()]


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
