"""Measures of the predicted classes alone."""

from dataclasses import dataclass

from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs


@dataclass(frozen=True)
class Disagreement(FunctionalMeasure):
    """Share of samples on which the two predicted classes differ, in [0, 1]; 0 means the same answers.

    >>> Disagreement()([[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 0.0]])
    0.5
    """

    id = "disagreement"
    range = (0.0, 1.0)
    symmetric = True
    kind = "rate"
    source = "Klabunde et al., Similarity of Neural Network Models, arXiv 2305.06329, section 5"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        a, b = outputs
        return (a.classes != b.classes).double()
