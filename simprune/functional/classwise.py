"""Is one class paying for the compression? Changes of recall and of error rates per class."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Outputs, Score, class_columns


def _counts(rows: Tensor) -> dict[str, Tensor]:
    """Samples per class that occurs as a label, (K,) int64 each, by the names that `max_class_recall_drop` lists."""
    a, b, y = rows.T.long()
    right_a, right_b = a == y, b == y
    samples = {
        "count": y,
        "right_a": y[right_a],
        "right_b": y[right_b],
        "lost": y[right_a & ~right_b],
        "gained": y[right_b & ~right_a],
        "claimed_a": a[~right_a],
        "claimed_b": b[~right_b],
    }
    size = int(rows.max()) + 1
    counts = {name: torch.bincount(classes, minlength=size) for name, classes in samples.items()}
    present = counts["count"].nonzero()[:, 0]
    return {"classes": present} | {name: count[present] for name, count in counts.items()}


class _Classwise(FunctionalMeasure):
    """A statistic of the counts per class, which are its `details` (lists, one entry per class with labels)."""

    needs_labels = True

    def _rows(self, outputs: tuple[Outputs, ...], labels: Tensor) -> Tensor:
        return class_columns(outputs, labels)

    def reduce(self, rows: Tensor) -> Score:
        counts = _counts(rows)
        return self._score(rows, counts, {name: column.tolist() for name, column in counts.items()})

    def _score(self, rows: Tensor, counts: dict[str, Tensor], details: dict[str, Any]) -> Score:
        raise NotImplementedError


@dataclass(frozen=True)
class MaxClassRecallDrop(_Classwise):
    """Largest recall of a class under a minus that under b, in [-1, 1]; 0 or less means that no class lost.

    Over the classes that occur as labels. `details` has lists over them: "classes", "count", "right_a", "right_b",
    "lost" (right in a only), "gained" (right in b only), "claimed_a" and "claimed_b" (others predicted as the class).

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> score = MaxClassRecallDrop()(a, b, labels=[0, 1])
    >>> score, score.details["lost"]
    (1.0, [0, 1])
    """

    id = "max_class_recall_drop"
    range = (-1.0, 1.0)
    kind = "worst_difference"
    source = "max over classes of recall(a) - recall(b)"

    def _score(self, rows: Tensor, counts: dict[str, Tensor], details: dict[str, Any]) -> Score:
        drops = (counts["lost"] - counts["gained"]).double() / counts["count"]
        return Score(drops.max().item(), count=len(rows), details=details)


@dataclass(frozen=True)
class MeanCentredRecallChange(_Classwise):
    """Largest distance of a class's recall change from the mean change over classes, in [0, 2]; 0: all alike.

    max |Delta_c - mean Delta|, Delta_c = recall under b - recall under a, over the classes that occur as labels.
    `details` as of `max_class_recall_drop`, and "change": the centred changes.

    >>> a, b = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> MeanCentredRecallChange()(a, b, labels=[0, 1])
    0.5
    """

    id = "mean_centred_recall_change"
    range = (0.0, 2.0)
    symmetric = True
    source = "Hooker et al. (2019), What Do Compressed Deep Neural Networks Forget?, arXiv 1911.05248; per class"

    def _score(self, rows: Tensor, counts: dict[str, Tensor], details: dict[str, Any]) -> Score:
        change = (counts["gained"] - counts["lost"]).double() / counts["count"]
        change -= change.mean()
        return Score(change.abs().max().item(), count=len(rows), details=details | {"change": change.tolist()})


class _ErrorShift(_Classwise):
    """A statistic of how false positive and false negative rates per class change, in percent of those of a."""

    source = "Blakeney et al. (2021), Simon Says: Evaluating and Mitigating Bias in Pruned Neural Networks, 2106.07849"

    def _score(self, rows: Tensor, counts: dict[str, Tensor], details: dict[str, Any]) -> Score:
        # the denominators of the rates are the same in both models, so rates change as counts do
        before = torch.stack([counts["claimed_a"], counts["count"] - counts["right_a"]]).double()
        after = torch.stack([counts["claimed_b"], counts["count"] - counts["right_b"]]).double()
        if (without := (before == 0).any(0)).any():
            some = ", ".join(map(str, counts["classes"][without][:5].tolist()))
            more = ", ..." if without.sum() > 5 else ""
            reason = f"the first model has no false positive or no false negative in class {some}{more}"
            return self._undefined(rows, reason + "; use max_class_recall_drop", **details)
        return Score(self._of(100 * (after / before - 1)), count=len(rows), details=details)

    def _of(self, shift: Tensor) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class CombinedErrorVariance(_ErrorShift):
    """Spread over classes of the change of error rates, in squared percent, [0, inf); 0 means all classes alike.

    v_c = 100 ((FPR_b - FPR_a) / FPR_a, (FNR_b - FNR_a) / FNR_a); the squared distance of v_c from the mean over
    classes is averaged over classes *and both coordinates*, as in the authors' code: half the mean squared norm.
    Undefined where a has no false positive or no false negative in some class. `details` as of
    `max_class_recall_drop`.

    >>> a, b = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    >>> CombinedErrorVariance()(a, b, labels=[0, 1, 1])  # v = (-50, 0) and (0, -50)
    625.0
    """

    id = "combined_error_variance"
    range = (0.0, math.inf)

    def _of(self, shift: Tensor) -> float:
        return (shift - shift.mean(1, keepdim=True)).square().mean().item()


@dataclass(frozen=True)
class SymmetricDistanceError(_ErrorShift):
    """Mean over classes of the distance of the change of error rates from balance, in percent, [0, inf); 0: balanced.

    |v_1 - v_2| / sqrt(2) with v_c as for `combined_error_variance`: 0 where false positives and false negatives grow
    alike. Undefined where a has no false positive or no false negative in some class.

    >>> a, b = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    >>> round(SymmetricDistanceError()(a, b, labels=[0, 1, 1]), 4)
    35.3553
    """

    id = "symmetric_distance_error"
    range = (0.0, math.inf)

    def _of(self, shift: Tensor) -> float:
        return (shift[0] - shift[1]).abs().mean().item() / math.sqrt(2)
