"""Quality of models on the same labelled samples."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.special import bdtr
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score, class_columns, rights


@dataclass(frozen=True)
class PerformanceDifference(FunctionalMeasure):
    """Largest difference of a quality score between any two models, |q(a) - q(b)| for two, in [0, 1].

    `metric` is "accuracy" or "f1_macro": the mean of F1 over all C classes, where a class that is neither a label
    nor predicted counts 0. `details["scores"]` has every model's. Equal quality hides flips: see `flip_rate`.

    >>> PerformanceDifference()([[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 0.0]], labels=[0, 1])
    0.5
    """

    metric: Literal["accuracy", "f1_macro"] = "accuracy"

    id = "performance_difference"
    range = (0.0, 1.0)
    symmetric = True
    needs_labels = True
    models = (2, None)
    source = "Klabunde et al., arXiv 2305.06329, section 5.1"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        return class_columns(outputs, labels, torch.full_like(labels, outputs[0].shape[1]))

    def reduce(self, rows: Tensor) -> Score:
        *models, labels, classes = rows.T
        scores = [
            (model == labels).double().mean().item()
            if self.metric == "accuracy"
            else _f1_macro(model, labels, int(classes[0]))
            for model in models
        ]
        return Score(max(scores) - min(scores), count=len(rows), details={"scores": scores})


def _f1_macro(predicted: Tensor, labels: Tensor, classes: int) -> float:
    hits = torch.bincount(labels[predicted == labels], minlength=classes)
    either = torch.bincount(predicted, minlength=classes) + torch.bincount(labels, minlength=classes)
    return (2 * hits / either.clamp_min(1).double()).mean().item()


@dataclass(frozen=True)
class AccuracyDrop(FunctionalMeasure):
    """Accuracy of a minus accuracy of b on the same labelled samples, in [-1, 1]; negative if b is better.

    `details["standard_error"]` is the paired one: sqrt(n10 + n01 - (n10 - n01)^2 / N) / N, where n10 samples
    are right in a only and n01 in b only.

    >>> AccuracyDrop()([[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 0.0]], labels=[0, 1])
    0.5
    """

    id = "accuracy_drop"
    range = (-1.0, 1.0)
    needs_labels = True
    kind = "difference"
    source = "paired difference of proportions; standard error as in McNemar (1947)"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = rights(outputs, labels).double().unbind(1)
        return a - b

    def reduce(self, rows: Tensor) -> Score:
        count, drop, flips = len(rows), rows.mean().item(), rows.abs().sum().item()
        error = math.sqrt(max(flips - count * drop**2, 0.0)) / count
        return Score(drop, count=count, details={"standard_error": error})


@dataclass(frozen=True)
class McNemarExactP(FunctionalMeasure):
    """Two-sided exact p-value that a and b are right equally often, in [0, 1]; small: their accuracies differ.

    Binomial test of the n10 samples that only a gets right among the n10 + n01 that exactly one does; 1 if there are
    none. A large value is no proof of equality: gate on `accuracy_drop`. `details`: "lost" n10, "gained" n01.

    >>> a, b = [[1.0, 0.0]] * 5, [[0.0, 1.0]] * 5
    >>> McNemarExactP()(a, b, labels=[0] * 5)
    0.0625
    """

    id = "mcnemar_exact_p"
    range = (0.0, 1.0)
    larger_is_more_similar = True
    symmetric = True
    needs_labels = True
    source = "McNemar (1947), Psychometrika 12; exact binomial form"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = rights(outputs, labels).to(torch.int8).unbind(1)
        return a - b

    def reduce(self, rows: Tensor) -> Score:
        lost, gained = int((rows > 0).sum()), int((rows < 0).sum())
        p = min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))
        return Score(p, count=len(rows), details={"lost": lost, "gained": gained})
