"""Measures of the predicted classes alone: how often models give the same answer."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Rate, Score, class_columns

MULTIPLICITY = "Marx, Calmon, Ustun (2020), Predictive Multiplicity in Classification, arXiv 1909.06677"
SURVEY = "Klabunde et al., Similarity of Neural Network Models, arXiv 2305.06329, section 5"


@dataclass(frozen=True)
class Disagreement(Rate):
    """Share of samples on which the two predicted classes differ, in [0, 1]; 0 means the same answers.

    >>> Disagreement()([[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 0.0]])
    0.5
    """

    id = "disagreement"
    symmetric = True
    source = SURVEY

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        a, b = outputs
        return (a.classes != b.classes).double()


class _Classes(FunctionalMeasure):
    """A statistic of the classes that every model predicts."""

    symmetric = True
    source = SURVEY

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        return class_columns(outputs)


class Kappa(_Classes):
    """Cohen's kappa of two columns of small integers; undefined, because `constant`, if chance agreement is 1."""

    range = (-1.0, 1.0)
    larger_is_more_similar = True
    constant: ClassVar[str]

    def reduce(self, rows: Tensor) -> Score:
        a, b = rows.T.long()
        count, size = len(rows), int(rows.max()) + 1
        same = int((a == b).sum())
        chance = int(torch.bincount(a, minlength=size) @ torch.bincount(b, minlength=size))  # times N^2, exactly
        details = {"observed": same / count, "chance": chance / count**2}
        if chance == count**2:
            return self._undefined(rows, self.constant, **details)
        return Score((same * count - chance) / (count**2 - chance), count=count, details=details)


@dataclass(frozen=True)
class CohenKappa(Kappa):
    """Agreement of two models' classes beyond chance, (p_o - p_e) / (1 - p_e), in [-1, 1]; 1 means the same answers.

    p_e is the agreement of independent answers with the same class counts. Undefined where both models always
    answer one and the same class: then look at `disagreement`. `details`: "observed" p_o, "chance" p_e.

    >>> CohenKappa()([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])
    0.0
    """

    id = "cohen_kappa"
    constant = "both models give one and the same class everywhere; use disagreement"
    source = "Cohen (1960), Educational and Psychological Measurement 20"


@dataclass(frozen=True)
class FleissKappa(_Classes):
    """Agreement of m >= 2 models' classes beyond chance, in [-1/(m-1), 1]; 1 means the same answers.

    (P - P_e) / (1 - P_e): P is the mean share of agreeing pairs of models, P_e = sum of squared class shares.
    Undefined where all models always answer one and the same class. `details`: "observed" P, "chance" P_e.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> round(FleissKappa().group([a, a, b]), 4)
    0.25
    """

    id = "fleiss_kappa"
    range = (-1.0, 1.0)
    larger_is_more_similar = True
    models = (2, None)
    source = "Fleiss (1971), Psychological Bulletin 76"

    def reduce(self, rows: Tensor) -> Score:
        count, m = rows.shape
        observed = int(votes(rows).sum() - count * m) / (count * m * (m - 1))
        total = torch.bincount(rows.flatten())
        chance = int(total @ total) / (count * m) ** 2
        details = {"observed": observed, "chance": chance}
        if int(total.max()) == count * m:
            return self._undefined(rows, "all models give one and the same class everywhere", **details)
        return Score((observed - chance) / (1 - chance), count=count, details=details)


def votes(classes: Tensor) -> Tensor:
    """For every sample and model, how many of the m models (itself included) give the same class, (N, m) int32."""
    return torch.stack([(classes == column[:, None]).sum(1, dtype=torch.int32) for column in classes.unbind(1)], 1)


@dataclass(frozen=True)
class Ambiguity(Rate):
    """Share of samples on which at least two of the models differ, in [0, 1]; 0 means the same answers.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> Ambiguity().group([a, a, b])
    0.5
    """

    id = "ambiguity"
    symmetric = True
    models = (1, None)
    source = MULTIPLICITY

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        classes = class_columns(outputs)
        return (classes != classes[:, :1]).any(1).double()


@dataclass(frozen=True)
class Discrepancy(_Classes):
    """Largest disagreement of any two of the models, in [0, 1]; 0 means the same answers.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> Discrepancy().group([a, a, b])
    0.5
    """

    id = "discrepancy"
    models = (1, None)
    source = MULTIPLICITY

    def reduce(self, rows: Tensor) -> Score:
        differing = [int((a != b).sum()) for a, b in combinations(rows.unbind(1), 2)]
        return Score(max(differing, default=0) / len(rows), count=len(rows))


@dataclass(frozen=True)
class StableCore(Rate):
    """Share of samples on which at least the share `theta` of the models agree, in [0, 1]; 1 means all do.

    With theta=1 it is 1 - ambiguity. ValueError unless 0 < theta <= 1.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> StableCore().group([a, a, b]), StableCore(theta=0.6).group([a, a, b])
    (0.5, 1.0)
    """

    theta: float = 1.0

    id = "stable_core"
    larger_is_more_similar = True
    symmetric = True
    models = (1, None)
    source = SURVEY

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(0 < self.theta <= 1, f"theta is a share of the models in (0, 1], got {self.theta!r}")

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        most = votes(class_columns(outputs)).amax(1).double()
        return (most / len(outputs) >= self.theta).double()


@dataclass(frozen=True)
class LabelEntropy(FunctionalMeasure):
    """Mean over samples of the entropy of the m models' votes, in nats, in [0, log min(C, m)]; 0: the same answers.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> round(LabelEntropy().group([a, b]), 4)  # log(2) / 2
    0.3466
    """

    id = "label_entropy"
    range = (0.0, math.inf)
    symmetric = True
    kind = "mean"
    models = (1, None)
    source = SURVEY

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor | None) -> Tensor:
        share = votes(class_columns(outputs)).double() / len(outputs)
        return (-share.log()).mean(1).clamp_min(0)  # the mean over models weighs each class by its share
