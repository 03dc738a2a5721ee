"""Measures of predicted classes and labels: which answers did compression change, and do both models err together?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Rate, Score, class_columns, rights
from simprune.functional.hard import SURVEY, Kappa, votes

FLIPS = "Dutta et al. (2024), Accuracy is Not All You Need, arXiv 2407.09141"


class _Flips(Rate):
    """A share of the samples that follows from the labels and both models' classes."""

    needs_labels = True
    source = FLIPS


@dataclass(frozen=True)
class NegativeFlipRate(_Flips):
    """Share of samples that a gets right and b wrong, n10 / N, in [0, 1]; 0 means nothing was lost.

    >>> NegativeFlipRate()([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], labels=[0, 1])
    0.5
    """

    id = "negative_flip_rate"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = rights(outputs, labels).unbind(1)
        return (a & ~b).double()


@dataclass(frozen=True)
class PositiveFlipRate(_Flips):
    """Share of samples that a gets wrong and b right, n01 / N, in [0, 1]; 0 means nothing was gained.

    >>> PositiveFlipRate()([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], labels=[0, 0])
    0.5
    """

    id = "positive_flip_rate"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = rights(outputs, labels).unbind(1)
        return (b & ~a).double()


@dataclass(frozen=True)
class FlipRate(_Flips):
    """Share of samples that exactly one of a and b gets right, (n10 + n01) / N, in [0, 1]; 0 means no flips.

    A wrong answer that becomes another wrong one is no flip: see `wrong_to_wrong_rate`. Their sum is `disagreement`.

    >>> FlipRate()([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], labels=[0, 0])
    0.5
    """

    id = "flip_rate"
    symmetric = True

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = rights(outputs, labels).unbind(1)
        return (a != b).double()


@dataclass(frozen=True)
class WrongToWrongRate(_Flips):
    """Share of samples that both get wrong with different answers, in [0, 1]; `disagreement` - `flip_rate`.

    >>> WrongToWrongRate()([[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], labels=[2])
    1.0
    """

    id = "wrong_to_wrong_rate"
    symmetric = True

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = (item.classes for item in outputs)
        return ((a != b) & (a != labels) & (b != labels)).double()


@dataclass(frozen=True)
class DisagreementGivenReferenceCorrect(_Flips):
    """Share of the samples a gets right on which b answers differently, in [0, 1]; 0 means nothing was lost.

    Samples that a gets wrong are skipped; undefined where a is never right.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> score = DisagreementGivenReferenceCorrect()(a, b, labels=[1, 1])
    >>> score, score.skipped
    (1.0, 1)
    """

    id = "disagreement_given_reference_correct"
    skips = "the first model is never right"
    source = "Joseph et al. (2020), Going Beyond Classification Accuracy Metrics in Model Compression, arXiv 2012.01604"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        a, b = (item.classes for item in outputs)
        return (a != b).double().masked_fill(a != labels, torch.nan)


@dataclass(frozen=True)
class PIERate(Rate):
    """Share of pruning-identified exemplars, in [0, 1]: samples whose most frequent class changed; 0 means none.

    `.group([original_1, ..., original_K, pruned_1, ..., pruned_K])`; the largest of tied classes counts. With K = 1
    it is `disagreement`. With labels, `details` has "accuracy_original" and "accuracy_pruned" (of the most frequent
    classes), and the same on the exemplars ("_exemplars") and on the others ("_others"; NaN where there are none).
    ValueError for an odd number of models.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> score = PIERate()(a, b, labels=[0, 0])
    >>> score, score.details["accuracy_pruned_exemplars"]
    (0.5, 1.0)
    """

    id = "pie_rate"
    symmetric = True
    models = (2, None)
    source = "Hooker et al. (2019), What Do Compressed Deep Neural Networks Forget?, arXiv 1911.05248"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        half, odd = divmod(len(outputs), 2)
        if odd:
            raise ValueError(f"{self.id} takes K originals, then K pruned models; got {len(outputs)} outputs")
        classes, count = class_columns(outputs), outputs[0].shape[1]
        a, b = _mode(classes[:, :half], count), _mode(classes[:, half:], count)
        columns = [a != b] if labels is None else [a != b, a == labels, b == labels]
        return torch.stack(columns, 1).double()

    def reduce(self, rows: Tensor) -> Score:
        score = super().reduce(rows)
        if rows.shape[1] == 3:
            changed = rows[:, 0] == 1
            for where, part in (("", rows), ("_exemplars", rows[changed]), ("_others", rows[~changed])):
                for column, who in ((1, "original"), (2, "pruned")):
                    score.details[f"accuracy_{who}{where}"] = part[:, column].mean().item()
        return score


def _mode(classes: Tensor, count: int) -> Tensor:
    """Most frequent of `count` classes over the models of (N, K), the largest of tied ones, (N,)."""
    return (votes(classes).long() * count + classes).amax(1) % count


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
