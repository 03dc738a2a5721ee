"""Measures of predicted classes and labels: do the two models err together, and how far must they disagree?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score, rights
from simprune.functional.flips import FlipRate
from simprune.functional.hard import SURVEY, Kappa


@dataclass(frozen=True)
class ErrorCorrectedDisagreement(FunctionalMeasure):
    """Disagreement divided by the error rate of a, in [0, inf]; 0 means the same answers.

    Where a makes no error: 0 without disagreement, else infinity, with a reason.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> ErrorCorrectedDisagreement()(a, b, labels=[1, 1])
    1.0
    """

    id = "error_corrected_disagreement"
    range = (0.0, math.inf)
    needs_labels = True
    source = "Fort, Hu, Lakshminarayanan (2019), Deep Ensembles: A Loss Landscape Perspective, arXiv 1912.02757"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = outputs
        return torch.stack([a.classes != b.classes, a.classes != labels], 1).to(torch.int8)

    def reduce(self, rows: Tensor) -> Score:
        differing, wrong = rows.sum(0).tolist()
        if wrong:
            return Score(differing / wrong, count=len(rows))
        return self._undefined(rows, "the first model makes no error", math.inf if differing else 0.0)


@dataclass(frozen=True)
class MinMaxNormalizedDisagreement(FunctionalMeasure):
    """Disagreement between the least (0) and the most (1) that the two error rates e and e' allow.

    (d - |e - e'|) / (most - |e - e'|), most = min(e + e', 1), or min(e + e', 2 - e - e') for two classes. Undefined
    where the error rates leave no choice, as when one model makes no error: then look at `disagreement`.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]
    >>> MinMaxNormalizedDisagreement()(a, b, labels=[0, 0])
    1.0
    """

    id = "min_max_normalized_disagreement"
    range = (0.0, 1.0)
    symmetric = True
    needs_labels = True
    source = SURVEY + "; the most for two classes: own derivation"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = outputs
        binary = torch.full_like(a.classes, a.shape[1] == 2, dtype=torch.bool)
        return torch.stack([a.classes != b.classes, a.classes != labels, b.classes != labels, binary], 1).to(torch.int8)

    def reduce(self, rows: Tensor) -> Score:
        count = len(rows)
        differing, wrong_a, wrong_b, binary = rows.sum(0).tolist()
        least = abs(wrong_a - wrong_b)
        most = min(wrong_a + wrong_b, 2 * count - wrong_a - wrong_b if binary else count)
        if most == least:
            return self._undefined(rows, "the error rates fix the disagreement; use disagreement")
        return Score((differing - least) / (most - least), count=count)


@dataclass(frozen=True)
class ErrorConsistency(Kappa):
    """Cohen's kappa of being right, in [-1, 1]: 1 means errors on the same samples, 0 independent errors.

    Undefined where both models are always right, or both always wrong: then look at `error_inconsistency`.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]
    >>> ErrorConsistency()(a, b, labels=[0, 0])
    -1.0
    """

    id = "error_consistency"
    needs_labels = True
    constant = "both models are always right or always wrong; use error_inconsistency"
    source = "Geirhos, Meding, Wichmann (2020), Beyond accuracy, arXiv 2006.16736"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        return rights(outputs, labels).to(torch.int8)


@dataclass(frozen=True)
class ErrorInconsistency(FlipRate):
    """Share of samples that exactly one of the two models gets right, in [0, 1]; 0 means errors on the same samples.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> ErrorInconsistency()(a, b, labels=[0, 0])
    0.5
    """

    id = "error_inconsistency"
    source = "(n10 + n01) / N; the same number as flip_rate"


@dataclass(frozen=True)
class ErrorRatio(FunctionalMeasure):
    """Samples both get wrong with different answers, per sample both get wrong with the same, in [0, inf].

    0 means the same wrong answers. Infinity, with a reason, where they never share one; undefined where no sample is
    wrong in both.

    >>> a, b = [[1.0, 0.0, 0.0]] * 3, [[1.0, 0.0, 0.0]] * 2 + [[0.0, 1.0, 0.0]]
    >>> ErrorRatio()(a, b, labels=[2, 2, 2])
    0.5
    """

    id = "error_ratio"
    range = (0.0, math.inf)
    symmetric = True
    needs_labels = True
    source = "different joint errors / same joint errors"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = (item.classes for item in outputs)
        both_wrong = (a != labels) & (b != labels)
        return torch.stack([both_wrong & (a != b), both_wrong & (a == b)], 1).to(torch.int8)

    def reduce(self, rows: Tensor) -> Score:
        different, same = rows.sum(0).tolist()
        details = {"different": different, "same": same}
        if same:
            return Score(different / same, count=len(rows), details=details)
        if different:
            return self._undefined(rows, "the models never share a wrong answer", math.inf, **details)
        return self._undefined(rows, "no sample is wrong in both models", **details)
