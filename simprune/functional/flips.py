"""Samples whose answer a compressed model changed, by who was right."""

from dataclasses import dataclass

import torch
from torch import Tensor

from simprune.functional._base import Outputs, Rate, Score, class_columns, rights
from simprune.functional.hard import votes

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
