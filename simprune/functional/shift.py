"""How far can a network be pruned, and does it hold on noisy or shifted inputs?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score, rights

LOST = "Liebenwein et al. (2021), Lost in Pruning, arXiv 2103.03014"


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
    range = (0.0, 1.0)
    larger_is_more_similar = True
    needs_labels = True
    models = (2, None)
    source = LOST

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratios or not all(0 <= ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"{self.id}: ratios must be shares removed, in [0, 1]; got {self.ratios}")
        if not 0 <= self.delta <= 1:
            raise ValueError(f"{self.id}: delta is a difference of error rates in [0, 1]; got {self.delta!r}")
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
        distances = [
            torch.linalg.vector_norm(a.probabilities - b.probabilities, dim=1).clamp_max(self.range[1])
            for a, b in pairs
        ]
        matches = [(a.classes == b.classes).double() for a, b in pairs]
        return torch.stack([torch.stack(distances).mean(0), *distances, *matches], 1)

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        _, *means = rows.mean(0).tolist()
        half = len(means) // 2
        score.details.update(distances=means[:half], match_rates=means[half:])
        return score
