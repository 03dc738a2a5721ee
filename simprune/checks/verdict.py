"""What a pruned model is checked for, and the outcome: gates, their results, the verdict."""

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
NUMBERS = ("value", "lower", "upper")  # of a result, which may be NaN or infinite
KEYS = ("measure", "options", "inputs", *NUMBERS, "limit", "confidence", "outcome", "count", "detail")  # of a report


@dataclass(frozen=True)
class Gate:
    """A limit for one functional measure, to be met by its one-sided bound at `confidence`.

    An upper limit, or a lower one for measures where larger is more similar. `options` are the measure's
    hyperparameters. `inputs`: "clean", or how test images are shifted first, one of
    `simprune.checks.corruptions.names()`. `output`: of a model with several outputs, the name or the number of the one
    that is checked; by default the main one, "logits" or the first. KeyError for an unknown measure; ValueError for a
    bad limit, confidence, option, inputs or output, and for a measure that no verdict on two models can use.

    >>> Gate("disagreement", limit=0.05).measure
    'disagreement'
    """

    measure: str
    limit: float
    confidence: float = 0.95
    options: dict[str, Any] = field(default_factory=dict)
    inputs: str = corruptions.CLEAN
    output: str | int | None = None

    def __post_init__(self) -> None:
        measure = self.build()
        if not measure.gate:
            raise ValueError(f"{self.measure} cannot be a gate: {_instead(measure)}")
        corruptions.known(self.inputs)
        if measure.form == "models" and self.inputs != corruptions.CLEAN:
            raise ValueError(f"{self.measure} is measured on clean inputs; got inputs={self.inputs!r}")
        if self.output is not None and (isinstance(self.output, bool) or not isinstance(self.output, str | int)):
            raise ValueError(f"the output of {self.measure} must be a name or a number; got {self.output!r}")
        if self.output is not None and measure.form == "models":
            raise ValueError(f"{self.measure} is measured inside of the models, not on an output; leave output out")
        if not isinstance(self.limit, int | float) or not math.isfinite(self.limit):
            raise ValueError(f"the limit of {self.measure} must be a finite number; got {self.limit!r}")
        if not isinstance(self.confidence, int | float) or not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0.5, 1), such as 0.95; got {self.confidence!r}")

    def build(self) -> FunctionalMeasure:
        """The measure with its options."""
        return get(self.measure, **self.options)

    @property
    def label(self) -> str:
        name = self.measure if self.output is None else f"{self.measure} of {self.output}"
        return name if self.inputs == corruptions.CLEAN else f"{name} on {self.inputs}"


def _instead(measure: FunctionalMeasure) -> str:
    """Why a verdict cannot use a measure, and the function to call instead."""
    name = f"simprune.functional.get({measure.id!r})"
    if measure.form == "models":
        return f"it has no confidence bounds; call {name}(model, small, inputs, labels=...)"
    return f"it takes the outputs of {measure.models[0]} models; call {name}.group([...], labels)"


@dataclass(frozen=True)
class GateResult:
    """The result of one gate: value, two one-sided bounds, outcome, samples used, and how it was decided."""

    gate: Gate
    value: float
    lower: float
    upper: float
    outcome: Outcome
    count: int
    detail: str


@dataclass(frozen=True)
class Verdict:
    """All gates' results on `count` samples: fail if one fails, pass if all pass, inconclusive in any other case.

    `notes`: gates that were left out. `seed`: of the bootstrap.
    """

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
        for result in self.results:
            sign = ">=" if result.gate.build().larger_is_more_similar else "<="
            numbers = [f"{getattr(result, key):.4g}" for key in NUMBERS]
            table.add_row(result.gate.label, *numbers, f"{sign} {result.gate.limit:.4g}", result.outcome)
        text = StringIO()
        console = Console(file=text, width=width, color_system=None, markup=False, highlight=False, emoji=False)
        console.print(table)
        for line in [*(f"{result.gate.label}: {result.detail}" for result in self.results), *self.notes]:
            console.print(line)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; NaN becomes None and infinity "inf"."""
        gates = []
        for result in self.results:
            row = vars(result.gate) | vars(result) | {key: _to_json(getattr(result, key)) for key in NUMBERS}
            output = {} if result.gate.output is None else {"output": result.gate.output}
            gates.append({key: row[key] for key in KEYS} | {"options": dict(result.gate.options)} | output)
        summary = {"outcome": self.outcome, "count": self.count, "seed": self.seed}
        return summary | {"gates": gates, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read back what `to_dict` returned."""
        results = []
        for row in data["gates"]:
            options, output = dict(row["options"]), row.get("output")
            gate = Gate(row["measure"], row["limit"], row["confidence"], options, row["inputs"], output)
            value, lower, upper = (math.nan if row[key] is None else float(row[key]) for key in NUMBERS)
            results.append(GateResult(gate, value, lower, upper, row["outcome"], row["count"], row["detail"]))
        return cls(tuple(results), data["count"], tuple(data["notes"]), data["seed"])


def _to_json(value: float) -> float | str | None:
    return None if math.isnan(value) else float(value) if math.isfinite(value) else str(float(value))
