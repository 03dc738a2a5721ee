"""Following a plan: edit, repair, fine-tune; and the table of what became of the model, one row per stage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from simprune.core.cost import Example
from simprune.core.plan import Method, Plan, fingerprint
from simprune.edit.apply import apply
from simprune.edit.effects import effects_of
from simprune.repair.reconstruct import METHODS, Choice, reconstruct
from simprune.repair.stand_ins import fit_stand_ins
from simprune.repair.training import finetune, reestimate_batchnorm
from simprune.trace.answers import Answers, agreement, answer
from simprune.trace.cost import measure_cost
from simprune.trace.network import Network
from simprune.trace.timing import batch_of, latency

RECONSTRUCTIONS = (*METHODS, "bn")


@dataclass
class Stages:
    """The table of what became of the model, one row per stage; without `timed` there are no latencies.

    Latency is of `batch_size` inputs, as a plan's; None: of as many as the example has.
    """

    example: tuple[tuple, dict]
    test: Iterable | None
    original: Answers | None = None
    timed: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, dict[str, int]] = field(default_factory=dict)  # of models by their tensors' names and shapes
    batch_size: int | None = None

    @property
    def batch(self) -> Example:
        """What latency is measured with."""
        return batch_of(self.example, self.batch_size)

    def add(self, name: str, model: nn.Module) -> None:
        shapes = fingerprint(model)
        if shapes not in self.costs:
            self.costs[shapes] = measure_cost(model, self.example).to_dict()
        answers = None if self.test is None else answer(model, self.test)
        self.original = self.original or answers
        self.rows.append(
            {
                "name": name,
                **agreement(answers, self.original),
                **self.costs[shapes],
                "latency_ms": 1e3 * latency(model, self.batch) if self.timed else None,
            }
        )


@dataclass(frozen=True)
class Recovery:
    """What is done to a model after the edits: a repair, then perhaps training.

    `method`: "bn", which re-estimates BatchNorm, or as `simprune.reconstruct` takes it. `settings`: arguments of
    `simprune.finetune`, or None for no training.
    """

    calibration: Iterable
    train: Iterable | None = None
    method: Method = "least_squares"
    settings: dict[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method != "bn":
            Choice.of(self.method)

    def follow(self, plan: Plan, network: Network, stages: Stages) -> "Followed":
        """Apply, repair and fine-tune; a row of the table after each."""
        model, effects = network.model, effects_of(plan, network)
        small = apply(plan, network, effects)
        fit_stand_ins(small, plan, network, self.calibration, effects)
        stages.add("pruned", small)
        repairs: list[dict[str, Any]] = []
        epochs: list[dict[str, float]] = []
        if self.method == "bn":
            reestimate_batchnorm(small, self.calibration)
            stages.add("BatchNorm re-estimated", small)
        elif self.method != "none":
            repairs = [
                refit.to_dict()
                for refit in reconstruct(small, plan, network, self.calibration, self.method, effects=effects)
            ]
            stages.add("folded" if self.method == "fold" else "reconstructed", small)
        if self.settings is not None and self.train is not None:
            epochs = finetune(small, self.train, **({"teacher": model, "seed": self.seed} | self.settings))
            stages.add("fine-tuned", small)
        return Followed(small, repairs, epochs)


@dataclass(frozen=True)
class Followed:
    """The smaller model, the errors of its layers before and after the repair, and the losses of its training."""

    model: nn.Module
    repairs: list[dict[str, Any]]
    epochs: list[dict[str, float]]


def training(
    finetune: Mapping[str, Any] | int | None, train: Iterable | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Arguments of `simprune.finetune`, None for no training, and a note when it is left out for want of data."""
    settings = {"epochs": finetune} if isinstance(finetune, int) else dict(finetune) if finetune is not None else None
    if settings is not None and train is None:
        return None, ["no training batches: fine-tuning was left out"]
    return settings, []


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every figure of several rows; None where one has none."""
    figures = {key: [row[key] for row in rows] for key in rows[0] if key != "name"}
    return {
        key: None if None in values else type(values[0])(sum(values) / len(values)) for key, values in figures.items()
    }
