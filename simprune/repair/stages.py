"""The table of a model's stages: one row per stage, with its accuracy and agreement, its costs and its latency."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from simprune.core.cost import Example
from simprune.core.plan import fingerprint
from simprune.trace.answers import Answers, agreement, answer, damage_of_outputs
from simprune.trace.cost import measure_cost
from simprune.trace.timing import batch_of, latency


@dataclass
class StageTable:
    """Rows of figures, the original first.

    Args:
        example: arguments of a forward pass, with which costs and latency are measured.
        test: batches that models answer; None for none.
        original: what the original answers, if it is known; else the first model that is added is the original.
        timed: False for rows without latency.
        batch_size: number of inputs that latency is of, as a plan's; None: as many as the example has.
        rows: one per model: name, accuracy, agreement, damage, costs, latency in ms; where there are several outputs
            also `damages`, the damage of every output by its name.
    """

    example: Example
    test: Iterable | None
    original: Answers | None = None
    timed: bool = True
    batch_size: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    _costs: dict[str, dict[str, int]] = field(default_factory=dict)  # of models by their tensors' names and shapes

    @property
    def batch(self) -> Example:
        """What latency is measured with."""
        return batch_of(self.example, self.batch_size)

    def untimed(self) -> "StageTable":
        """An empty table for another model on the same inputs."""
        return StageTable(self.example, self.test, self.original, False, self.batch_size, [], self._costs)

    def add(self, name: str, model: nn.Module) -> None:
        """Measure a model as it is now."""
        shapes = fingerprint(model)
        if shapes not in self._costs:
            self._costs[shapes] = measure_cost(model, self.example).to_dict()
        answers = None if self.test is None else answer(model, self.test)
        self.original = self.original or answers
        timing = 1e3 * latency(model, self.batch) if self.timed else None
        figures = {**agreement(answers, self.original), **self._costs[shapes], "latency_ms": timing}
        if answers is not None and self.original is not None and len(answers.outputs) > 1:
            figures["damages"] = damage_of_outputs(answers, self.original)
        self.rows.append({"name": name, **figures})


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every figure of several rows; None where one of them has none."""
    figures = {key: [row[key] for row in rows] for key in rows[0] if key not in ("name", "damages")}
    return {
        key: None if None in values else type(values[0])(sum(values) / len(values)) for key, values in figures.items()
    }
