"""The table of a model's stages: one row per stage, with its accuracy and agreement, its costs and its latency."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from simprune.core.batches import device_of
from simprune.core.cost import Example
from simprune.core.plan import fingerprint
from simprune.trace.answers import Answers, agreement, answer, damage_of_outputs, hits
from simprune.trace.cost import measure_cost
from simprune.trace.timing import batch_of, bench, default_size, rotate

UNLIKE = ("name", "damages")  # of a row, of which there is no mean


@dataclass
class StageTable:
    """Rows of figures, the original first.

    Args:
        example: arguments of a forward pass, with which costs and latency are measured.
        test: batches that models answer; None for none.
        original: what the original answers, if it is known; else the first model that is added is the original.
        batch_size: number of inputs that latency is of, as a plan's; None: see `simprune.trace.timing.default_size`.
        rows: one per model: name, accuracy, agreement, damage, costs, latency in ms, None until `time`; where there are
            several outputs also `damages`, the damage of every output by its name.
        architectures: of the rows, as keys of `models`; several for a row of means.
        models: one of every architecture, whatever its weights, to be timed.
        weights: of outputs in the damage, by name; those that it does not name have the weight 1.
        hits: of the last row, see `simprune.trace.answers.hits`; None where it was not measured here.
    """

    example: Example
    test: Iterable | None
    original: Answers | None = None
    batch_size: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    architectures: list[tuple[str, ...]] = field(default_factory=list)
    models: dict[str, nn.Module] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    hits: Tensor | None = None
    _costs: dict[str, dict[str, int]] = field(default_factory=dict)  # of models by their tensors' names and shapes

    @property
    def batch(self) -> Example:
        """What latency is measured with."""
        return batch_of(self.example, self.batch_size or default_size(self.rows[0]["macs"] if self.rows else 0))

    def beside(self) -> "StageTable":
        """An empty table for another model on the same inputs, which is timed with this one's."""
        return StageTable(
            self.example, self.test, self.original, self.batch_size, models=self.models, _costs=self._costs
        )

    def add(self, name: str, model: nn.Module) -> None:
        """Measure a model as it is now."""
        shapes = fingerprint(model)
        if shapes not in self._costs:
            self._costs[shapes] = measure_cost(model, self.example).to_dict()
        answers = None if self.test is None else answer(model, self.test, self.weights)
        self.original = self.original or answers
        figures = {**agreement(answers, self.original), **self._costs[shapes], "latency_ms": None}
        if answers is not None and self.original is not None and len(answers.outputs) > 1:
            figures["damages"] = damage_of_outputs(answers, self.original)
        self.append({"name": name, **figures}, model)
        self.hits = hits(answers, self.original)

    def append(self, row: dict[str, Any], *models: nn.Module) -> None:
        """Add a row of figures that are known, of one model or a mean over several."""
        keys = tuple(_architecture(model) for model in models)
        self.models |= {key: model for key, model in zip(keys, models, strict=True) if key not in self.models}
        self.rows.append(row)
        self.hits = None
        self.architectures.append(keys)

    def time(self) -> dict[str, Any]:
        """Time all architectures in one rotation, and fill in the latency of every row; returns what it depends on.

        Rows of equal architectures share one measurement. `latency_spread_ms` are quartiles; `latency_told_apart`
        says whether the difference from the original is larger than the spread of their ratio.
        """
        wanted = dict.fromkeys(key for keys in self.architectures for key in keys)
        timed = dict(zip(wanted, rotate([self.models[key] for key in wanted], self.batch), strict=True))
        for row, keys in zip(self.rows, self.architectures, strict=True):
            own = [timed[key] for key in keys]
            if own:
                row["latency_ms"] = 1e3 * sum(entry.seconds for entry in own) / len(own)
                row["latency_spread_ms"] = [1e3 * sum(entry.spread[end] for entry in own) / len(own) for end in (0, 1)]
                row["latency_told_apart"] = all(entry.told_apart for entry in own)
        turns = min(entry.turns for entry in timed.values())
        return bench(self.batch, device_of(self.models[self.architectures[0][0]]), turns)


def _architecture(model: nn.Module) -> str:
    """What decides how long a model takes: its modules and the shapes of its tensors."""
    return f"{fingerprint(model)} {model}"


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every figure of several rows; None where one of them has none."""
    figures = {key: [row[key] for row in rows] for key in rows[0] if key not in UNLIKE}
    return {
        key: None if None in values else type(values[0])(sum(values) / len(values)) for key, values in figures.items()
    }
