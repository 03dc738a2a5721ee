"""Can the confidence still be used? Calibration and selective prediction of one model, and how a second one changes it.

`f.describe(logits, labels)` is the figure of one model, `f(a, b, labels)` that of b minus that of a: positive is
worse. The confidence is the largest class probability.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score

TIE = 64 * torch.finfo(torch.float64).eps  # confidences closer than this share of their size differ by rounding alone


class _Quality(FunctionalMeasure):
    """A figure of one model, lower is better, and its change; `details` has both models': "original", "pruned"."""

    needs_labels = True
    models = (1, 2)

    def describe(self, logits: Any, labels: Any) -> Score:
        """The figure of one model, from logits (N, C) or `Outputs` and labels (N,)."""
        return self.group([logits], labels)

    def _change(self, count: int, figures: list[float]) -> Score:
        if len(figures) == 1:
            return Score(figures[0], count=count)
        a, b = figures
        reason = f"{self.id}: infinite for both models" if math.isnan(b - a) else ""
        return Score(b - a, count=count, reason=reason, details={"original": a, "pruned": b})


class _MeanLoss(_Quality):
    """A mean loss. Rows are b - a, a, b; or the only model's."""

    kind = "mean"

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        losses = [self._loss(item, labels) for item in outputs]
        return torch.stack(losses if len(losses) == 1 else [losses[1] - losses[0], *losses], 1)

    def _loss(self, outputs: Outputs, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def reduce(self, rows: Tensor) -> Score:
        means = rows.mean(0).tolist()
        return self._change(len(rows), means if len(means) == 1 else means[1:])


@dataclass(frozen=True)
class Brier(_MeanLoss):
    """Brier score, the mean of sum_c (p_c - 1[c = label])^2, in [0, 2]: its change from a to b, in [-2, 2].

    >>> Brier().describe([[0.0, 0.0]], labels=[1])
    0.5
    """

    id = "brier"
    range = (-2.0, 2.0)
    source = "Brier (1950), Monthly Weather Review 78; all classes summed"

    def _loss(self, outputs: Outputs, labels: Tensor) -> Tensor:
        p = outputs.probabilities
        of_label = p.gather(1, labels[:, None])[:, 0]
        return p.square().sum(1) - of_label.square() + (1 - of_label).square()


@dataclass(frozen=True)
class NLL(_MeanLoss):
    """Negative log-likelihood, the mean of -log p_label in nats, in [0, inf]: its change from a to b.

    Undefined where both models give some label no probability at all (not possible with finite logits).

    >>> round(NLL().describe([[0.0, 0.0]], labels=[1]), 4)
    0.6931
    """

    id = "nll"
    range = (-math.inf, math.inf)
    source = "cross-entropy of the labels"

    def _loss(self, outputs: Outputs, labels: Tensor) -> Tensor:
        return -outputs.log_probabilities.gather(1, labels[:, None])[:, 0]


class _Confidence(_Quality):
    """A statistic of confidences and of being right. Rows are (N, models, 2)."""

    range = (-1.0, 1.0)

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        columns = [torch.stack([item.probabilities.amax(1), (item.classes == labels).double()], 1) for item in outputs]
        return torch.stack(columns, 1)

    def reduce(self, rows: Tensor) -> Score:
        return self._change(len(rows), [self._of(*model.unbind(1)) for model in rows.unbind(1)])

    def _of(self, confidence: Tensor, right: Tensor) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class _Bins(_Confidence):
    """A statistic of equal-width bins (lo, hi] of the confidence, in float64."""

    bins: int = 15

    source = "Guo, Pleiss, Sun, Weinberger (2017), On Calibration of Modern Neural Networks, arXiv 1706.04599"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.bins >= 1, f"at least one bin is needed, got bins={self.bins}")

    def _gaps(self, confidence: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Samples per bin, and |sum of right - sum of confidence| of each."""
        upper = torch.arange(1, self.bins + 1).double() / self.bins  # divided, so that 1/3 is an edge of 15 bins
        index = torch.bucketize(confidence.contiguous(), upper)
        index = index.clamp_max(self.bins - 1)  # 1 + rounding is in the last one
        count = torch.bincount(index, minlength=self.bins)
        return count, torch.bincount(index, right - confidence, minlength=self.bins).abs()


@dataclass(frozen=True)
class ECE(_Bins):
    """Expected calibration error, sum_b n_b/N |accuracy_b - confidence_b|, in [0, 1]: its change from a to b.

    `bins` equal-width bins (lo, hi], in float64. ValueError for less than one.

    >>> ECE().describe([[0.0, 0.0], [0.0, 0.0]], labels=[1, 1])
    0.5
    """

    id = "ece"

    def _of(self, confidence: Tensor, right: Tensor) -> float:
        return self._gaps(confidence, right)[1].sum().item() / len(right)


@dataclass(frozen=True)
class MCE(_Bins):
    """Maximum calibration error, max_b |accuracy_b - confidence_b| over bins with samples: its change from a to b.

    `bins` equal-width bins (lo, hi], in float64. ValueError for less than one.

    >>> MCE().describe([[0.0, 0.0], [0.0, 0.0]], labels=[1, 1])
    0.5
    """

    id = "mce"

    def _of(self, confidence: Tensor, right: Tensor) -> float:
        count, gaps = self._gaps(confidence, right)
        return (gaps[count > 0] / count[count > 0]).max().item()


@dataclass(frozen=True)
class AURC(_Confidence):
    """Area under the risk-coverage curve, in [0, 1]: its change from a to b.

    The mean over k = 1..N of the error rate among the k most confident samples. Samples of equal confidence (up to
    rounding) count as in the mean over their orders.

    >>> AURC().describe([[3.0, 0.0], [0.0, 1.0]], labels=[0, 0])  # risks 0 and 1/2
    0.25
    """

    id = "aurc"
    source = "Geifman, El-Yaniv (2017), Selective Classification for Deep Neural Networks, arXiv 1705.08500"

    def _of(self, confidence: Tensor, right: Tensor) -> float:
        confidence, order = confidence.sort(descending=True)
        tied = torch.zeros(len(order), dtype=torch.long)  # number of the group of equal confidence
        tied[1:] = (confidence[:-1] - confidence[1:] > TIE * confidence[:-1]).cumsum(0)
        errors = torch.bincount(tied, 1 - right[order]) / torch.bincount(tied)
        covered = torch.arange(1, len(order) + 1)
        return (errors[tied].cumsum(0) / covered).mean().item()
