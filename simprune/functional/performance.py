"""Quality of two models on the same labelled samples."""

import math
from dataclasses import dataclass

from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score


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

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        a, b = outputs
        return (a.classes == labels).double() - (b.classes == labels).double()

    def reduce(self, rows: Tensor) -> Score:
        count, drop, flips = len(rows), rows.mean().item(), rows.abs().sum().item()
        error = math.sqrt(max(flips - count * drop**2, 0.0)) / count
        return Score(drop, count=count, details={"standard_error": error})
