"""Following a plan: edit, repair, fine-tune; and the table of what became of the model, one row per stage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from simprune.batches import call, evaluation, labels_of
from simprune.cost import Example, latency, measure_cost
from simprune.latency import batch_of, in_turns
from simprune.planning.plan import Plan, fingerprint
from simprune.recovery import finetune, reestimate_batchnorm
from simprune.surgery import apply, reconstruct
from simprune.surgery.reconstruct import METHODS, Choice, Method
from simprune.surgery.stand_ins import fit_stand_ins

ROUNDS = 15  # of timing two models in turns
RECONSTRUCTIONS = (*METHODS, "bn")


@dataclass(frozen=True)
class Answers:
    """A model's outputs on the test set, with the labels where there are any."""

    logits: Tensor
    labels: Tensor | None = None


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

    def follow(self, plan: Plan, model: nn.Module, stages: Stages) -> "Followed":
        """Apply, repair and fine-tune; a row of the table after each."""
        small = apply(plan, model)
        fit_stand_ins(small, plan, model, self.calibration)
        stages.add("pruned", small)
        repairs: list[dict[str, Any]] = []
        epochs: list[dict[str, float]] = []
        if self.method == "bn":
            reestimate_batchnorm(small, self.calibration)
            stages.add("BatchNorm re-estimated", small)
        elif self.method != "none":
            repairs = [refit.to_dict() for refit in reconstruct(small, plan, model, self.calibration, self.method)]
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


def answer(model: nn.Module, test: Iterable) -> Answers:
    """Outputs and labels on a whole test set."""
    logits, labels = [], []
    with evaluation(model):
        for batch in test:
            logits.append(call(model, batch).cpu())
            label = labels_of(batch)
            if label is not None:
                labels.append(label.cpu())
    if not logits:
        raise ValueError("test has no batches; give at least one")
    return Answers(torch.cat(logits), torch.cat(labels) if len(labels) == len(logits) else None)


def agreement(answers: Answers | None, original: Answers | None) -> dict[str, float | None]:
    """Accuracy, the share of inputs with the original's top class, and damage: the squared change of the output as a
    share of its variance. None where they have no meaning."""
    if answers is None or original is None:
        return {"accuracy": None, "agreement": None, "damage": None}
    lost = relative_error(answers.logits, original.logits)
    if answers.logits.ndim != 2:
        return {"accuracy": None, "agreement": None, "damage": lost}
    predicted = answers.logits.argmax(1)
    accuracy = None if answers.labels is None else (predicted == answers.labels).double().mean().item()
    same = (predicted == original.logits.argmax(1)).double().mean().item()
    return {"accuracy": accuracy, "agreement": same, "damage": lost}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Squared difference of outputs (..., width) as a share of the variance of those that are wanted.

    >>> relative_error(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
    1.0
    """
    return float(relative_errors(found, wanted).mean())


def relative_errors(found: Tensor, wanted: Tensor) -> Tensor:
    """(...) the same for every output: its squared difference as a share of the mean over all of them.

    >>> relative_errors(torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    found, wanted = found.double().flatten(0, -2), wanted.double().flatten(0, -2)
    variance = (wanted - wanted.mean(0)).square().sum(1).mean()
    return (found - wanted).square().sum(1) / variance.clamp(min=1e-300)


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every figure of several rows; None where one has none."""
    figures = {key: [row[key] for row in rows] for key in rows[0] if key != "name"}
    return {
        key: None if None in values else type(values[0])(sum(values) / len(values)) for key, values in figures.items()
    }


def side_by_side(model: nn.Module, small: nn.Module, example: Example) -> tuple[float, float, float]:
    """Median seconds of `model` and of `small`, and the median ratio of second to first, in short turns."""
    times = islice(in_turns(model, small, example), ROUNDS)
    before, after = zip(*times, strict=True)
    return median(before), median(after), median(second / first for first, second in zip(before, after, strict=True))
