"""Quality of models on the same labelled samples, and how much of it pruning, shifted and noisy inputs cost."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.special import bdtr
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score, class_columns, rights

LOST = "Liebenwein et al. (2021), Lost in Pruning, arXiv 2103.03014"


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
    symmetric = True
    needs_labels = True
    models = (2, None)
    source = "Klabunde et al., arXiv 2305.06329, section 5.1"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        return class_columns(outputs, labels, torch.full_like(labels, outputs[0].shape[1]))

    def reduce(self, rows: Tensor) -> Score:
        *models, labels, classes = rows.T
        if self.metric == "accuracy":
            scores = [(model == labels).double().mean().item() for model in models]
        else:
            scores = [_f1_macro(model, labels, int(classes[0])) for model in models]
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


@dataclass(frozen=True)
class PrunePotential(FunctionalMeasure):
    """Largest of the prune `ratios` whose error rate exceeds the dense model's by at most `delta`, in [0, 1].

    `.group([dense, pruned_1, ..., pruned_K], labels)` with one ratio, in [0, 1], per pruned model; 0 where no model
    qualifies. Larger is better. `details["excess"]`: each model's error rate minus the dense one's.
    ValueError for other ratios, as many as there are no pruned models for, or delta outside [0, 1].

    >>> dense, half, most = [[1.0, 0.0]] * 2, [[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2
    >>> PrunePotential(ratios=(0.5, 0.9)).group([dense, half, most], labels=[0, 0])
    0.5
    """

    ratios: tuple[float, ...]
    delta: float = 0.005

    id = "prune_potential"
    larger_is_more_similar = True
    needs_labels = True
    models = (2, None)
    source = LOST

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = bool(self.ratios) and all(0 <= ratio <= 1 for ratio in self.ratios)
        self._require(shares, f"ratios must be shares removed, in [0, 1]; got {self.ratios}")
        self._require(0 <= self.delta <= 1, f"delta is a difference of error rates in [0, 1]; got {self.delta!r}")
        self._declare(range=(0.0, float(max(self.ratios))))

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        if len(outputs) != len(self.ratios) + 1:
            expected = f"the dense model, then one for each of the {len(self.ratios)} ratios"
            raise ValueError(f"{self.id} takes the outputs of {expected}; got {len(outputs)}")
        return rights(outputs, labels).to(torch.int8)

    def reduce(self, rows: Tensor) -> Score:
        dense, *pruned = rows.sum(0).tolist()
        excess = [(dense - right) / len(rows) for right in pruned]
        safe = [ratio for ratio, more in zip(self.ratios, excess, strict=True) if more <= self.delta]
        return Score(max(safe, default=0.0), count=len(rows), details={"excess": excess})


@dataclass(frozen=True)
class ExcessErrorDifference(FunctionalMeasure):
    """How much more the error rate grows on shifted inputs after pruning, in [-2, 2]; 0 means as before.

    (err_shifted - err)(pruned) - (err_shifted - err)(dense) by
    `.group([dense, pruned, dense_shifted, pruned_shifted], labels)`: outputs on the same samples, clean and shifted.

    >>> right, wrong = [[1.0, 0.0]], [[0.0, 1.0]]
    >>> ExcessErrorDifference().group([right, right, right, wrong], labels=[0])
    1.0
    """

    id = "excess_error_difference"
    range = (-2.0, 2.0)
    needs_labels = True
    kind = "mean"
    gate = False
    models = (4, 4)
    source = LOST

    def __call__(self, logits_a: Any, logits_b: Any, labels: Any = None) -> Score:
        raise ValueError(f"{self.id} needs .group([dense, pruned, dense_shifted, pruned_shifted], labels)")

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        dense, pruned, dense_shifted, pruned_shifted = rights(outputs, labels).double().unbind(1)
        return (pruned - pruned_shifted) - (dense - dense_shifted)


@dataclass(frozen=True)
class NoiseFunctionalDistance(FunctionalMeasure):
    """Mean L2 distance of class probabilities on noisy inputs, in [0, sqrt(2)]; 0 means equal.

    `f(a, b)` on outputs for the same noisy inputs; several noise levels by `.group([a_1, b_1, a_2, b_2, ...])`, whose
    mean is taken. `details`: "distances" and "match_rates" (same predicted class) per level. ValueError for an odd
    number of outputs.

    >>> a, b = (Outputs.from_probabilities([row]) for row in ([1.0, 0.0], [0.0, 1.0]))
    >>> score = NoiseFunctionalDistance()(a, b)
    >>> round(score, 4), score.details["match_rates"]
    (1.4142, [0.0])
    """

    id = "noise_functional_distance"
    range = (0.0, math.sqrt(2))
    symmetric = True
    kind = "mean"
    models = (2, None)
    source = LOST

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        if len(outputs) % 2:
            raise ValueError(f"{self.id} takes a and b of each noise level in turn; got {len(outputs)} outputs")
        pairs = list(zip(outputs[::2], outputs[1::2], strict=True))
        differences = torch.stack([a.probabilities - b.probabilities for a, b in pairs])
        distances = torch.linalg.vector_norm(differences, dim=2).clamp_max(self.range[1])
        matches = [(a.classes == b.classes).double() for a, b in pairs]
        return torch.stack([distances.mean(0), *distances, *matches], 1)

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        _, *means = rows.mean(0).tolist()
        half = len(means) // 2
        score.details.update(distances=means[:half], match_rates=means[half:])
        return score
