"""Outputs with several labels per sample: one logit each, (N, L)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Score, finite


@dataclass(frozen=True)
class LabelwiseDisagreement(FunctionalMeasure):
    """Mean over samples and labels of whether the two decisions differ (Hamming), in [0, 1]; 0 means the same.

    Logits (N, L); a label is given where the sigmoid of its logit exceeds `threshold`. `details`: "labels", every
    label's disagreement, and "largest". Labels of the samples are not used. ValueError unless 0 < threshold < 1.

    >>> score = LabelwiseDisagreement()([[1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    >>> score, score.details["labels"]
    (0.25, [0.0, 0.5])
    """

    threshold: float = 0.5

    id = "labelwise_disagreement"
    range = (0.0, 1.0)
    symmetric = True
    kind = "mean"
    form = "multilabel"
    source = "Hamming loss of one model against the other"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"{self.id}: threshold is a probability in (0, 1), got {self.threshold!r}")

    def _output(self, value: Any, what: str) -> Tensor:
        expected = "(N, L) with N >= 1 samples and L >= 1 labels"
        return finite(value, what, expected, lambda x: x.ndim == 2 and x.shape[1] >= 1)

    def _truth(self, labels: Any, shape: tuple[int, ...]) -> None:
        return None

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        a, b = (each.sigmoid() > self.threshold for each in outputs)
        return (a != b).to(torch.int8)

    def values(self, rows: Tensor) -> Tensor:
        return rows.double().mean(1)

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        each = (rows.sum(0) / len(rows)).tolist()
        score.details.update(labels=each, largest=max(each))
        return score
