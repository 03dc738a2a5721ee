"""What is asked of a pruned model, and what was found: gates, their results, the verdict."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Literal, Self

from rich import box
from rich.console import Console
from rich.table import Table

from simprune.checks import corruptions
from simprune.functional import FunctionalMeasure, get

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Gate:
    """A limit for one functional measure, to be met by its one-sided bound at `confidence`.

    An upper limit, or a lower one for measures where larger is more similar. `options` are the measure's
    hyperparameters. `inputs`: "clean", or how test images are shifted first, one of
    `simprune.checks.corruptions.names()`. KeyError for an unknown measure; ValueError for a bad limit, confidence,
    option or inputs, and for a measure that no verdict on two models can use.

    >>> Gate("disagreement", limit=0.05).measure
    'disagreement'
    """

    measure: str
    limit: float
    confidence: float = 0.95
    options: dict[str, Any] = field(default_factory=dict)
    inputs: str = corruptions.CLEAN

    def __post_init__(self) -> None:
        measure = self.build()
        if not measure.gate:
            raise ValueError(f"{self.measure} cannot be a gate: {_instead(measure)}")
        corruptions.known(self.inputs)
        if measure.form == "models" and self.inputs != corruptions.CLEAN:
            raise ValueError(f"{self.measure} is measured on clean inputs; got inputs={self.inputs!r}")
        if not isinstance(self.limit, int | float) or not math.isfinite(self.limit):
            raise ValueError(f"the limit of {self.measure} must be a finite number; got {self.limit!r}")
        if not isinstance(self.confidence, int | float) or not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), such as 0.95; got {self.confidence!r}")

    def build(self) -> FunctionalMeasure:
        """The measure with its options."""
        return get(self.measure, **self.options)

    @property
    def label(self) -> str:
        return self.measure if self.inputs == corruptions.CLEAN else f"{self.measure} on {self.inputs}"


def _instead(measure: FunctionalMeasure) -> str:
    """Why a verdict cannot use a measure, and the function to call instead."""
    name = f"simprune.functional.get({measure.id!r})"
    if measure.form == "models":
        return f"it has no confidence bounds; call {name}(model, small, inputs, labels=...)"
    return f"it takes the outputs of {measure.models[0]} models; call {name}.group([...], labels)"


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
