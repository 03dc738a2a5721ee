"""What a verdict's page shows beside the gates, collected batch by batch: a few numbers per input, a few pictures."""

import base64
import heapq
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from simprune.checks.corruptions import encoded, image_of
from simprune.functional import Outputs

BINS = 15  # of confidence, as of `ece`
SHOWN = 12  # inputs that changed most
FULL_MATRIX = 20  # classes: with more, the most frequent changes are listed
LONGEST = 40  # rows of a table


def wilson(events: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a rate, to look at (Wilson 1927).

    >>> low, high = wilson(50, 100)
    >>> round(low, 4), round(high, 4)
    (0.4038, 0.5962)
    """
    z = float(scipy.stats.norm.ppf((1 + confidence) / 2))
    middle, spread = (events + z * z / 2) / (count + z * z), z / (count + z * z)
    half = spread * float(np.sqrt(events * (count - events) / count + z * z / 4))
    return max(0.0, middle - half), min(1.0, middle + half)


class Evidence:
    """Collects what the page shows from every batch with both models' outputs; `validate` calls it as its `watch`.

    The change of an input is the distance of both class distributions, in [0, 1]. Where outputs are not class scores
    (`class_scores` False) it is the distance of the outputs as a share of the original output's norm, and only the
    inputs that changed most are collected.
    """

    def __init__(self, class_scores: bool = True) -> None:
        self.class_scores = class_scores
        self._classes: list[np.ndarray] = []  # (N, 2) predictions, int32
        self._confidence: list[np.ndarray] = []  # (N, 2), float32
        self._labels: list[np.ndarray] = []
        self._most: list[tuple[float, int, dict[str, Any], Tensor | None]] = []  # change, -index, facts, image
        self._count, self._width = 0, 0

    def __call__(self, batch: Any, a: Tensor, b: Tensor, labels: Tensor | None) -> None:
        images, facts = image_of(batch), [dict[str, Any]() for _ in range(len(a))]
        if self.class_scores:
            before, after = Outputs.of(a), Outputs.of(b)
            p, q = before.probabilities, after.probabilities
            change = (p - q).abs().sum(1) / 2
            self._classes.append(torch.stack([before.classes, after.classes], 1).int().numpy())
            self._confidence.append(torch.stack([p.amax(1), q.amax(1)], 1).float().numpy())
            self._width = p.shape[1]
            keys = ("before", "after", "confidence_before", "confidence_after")
            columns = [*self._classes[-1].T.tolist(), *self._confidence[-1].T.tolist()]
            facts = [dict[str, Any](zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
            if labels is not None and labels.ndim == 1:
                self._labels.append(labels.cpu().int().numpy())
                for fact, label in zip(facts, labels.tolist(), strict=True):
                    fact["label"] = label
        else:
            x, y = a.double().flatten(1), b.double().flatten(1)
            change = (x - y).norm(dim=1) / x.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        for i in change.argsort(descending=True)[:SHOWN].tolist():
            picture = None if images is None else images[i].detach().cpu().clone()
            entry = (float(change[i]), -(self._count + i), facts[i], picture)  # of equal changes the earlier input
            (heapq.heappush if len(self._most) < SHOWN else heapq.heappushpop)(self._most, entry)
        self._count += len(a)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; pictures are data URIs of PNG files."""
        data: dict[str, Any] = {"count": self._count, "class_scores": self.class_scores, "examples": self._examples()}
        if not self._classes:
            return data
        classes, confidence = np.concatenate(self._classes), np.concatenate(self._confidence)
        pairs, counts = np.unique(classes[classes[:, 0] != classes[:, 1]], axis=0, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:LONGEST]
        data["changed"] = int(counts.sum())
        data["changes"] = [
            {"before": int(pairs[i, 0]), "after": int(pairs[i, 1]), "count": int(counts[i])} for i in most
        ]
        if self._width <= FULL_MATRIX:
            flat = np.bincount(classes[:, 0] * self._width + classes[:, 1], minlength=self._width**2)
            data["confusion"] = flat.reshape(self._width, self._width).tolist()
        if self._labels:
            labels = np.concatenate(self._labels)
            data["recall"] = _recall(classes, labels)
            data["reliability"] = {
                name: _bins(confidence[:, i], classes[:, i] == labels) for i, name in enumerate(("original", "pruned"))
            }
        return data

    def _examples(self) -> list[dict[str, Any]]:
        most = sorted(self._most, key=lambda entry: entry[:2], reverse=True)
        pictures = [picture for *_, picture in most if picture is not None]
        low = min((float(picture.min()) for picture in pictures), default=0.0)
        high = max((float(picture.max()) for picture in pictures), default=1.0)
        return [
            {"index": -negative, "change": change, **facts, "picture": _png(picture, low, high)}
            for change, negative, facts, picture in most
        ]


def _recall(classes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Recall of every class in both models with its interval; of many classes, those that lost most."""
    rows = []
    for label in np.unique(labels).tolist():
        right = classes[labels == label] == label
        count, (before, after) = len(right), right.sum(0).tolist()
        row = {"class": label, "count": count, "before": before / count, "after": after / count}
        rows.append(row | {"before_bounds": wilson(before, count), "after_bounds": wilson(after, count)})
    if len(rows) > LONGEST:
        rows = sorted(rows, key=lambda row: row["after"] - row["before"])[:LONGEST]
    return rows


def _bins(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Equal-width bins (lo, hi] that hold inputs, in order."""
    which = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for i in np.unique(which).tolist():
        inside = which == i
        count, hits = int(inside.sum()), int(right[inside].sum())
        bins.append(
            {"low": i / BINS, "high": (i + 1) / BINS, "count": count, "accuracy": hits / count}
            | {"confidence": float(confidence[inside].mean()), "bounds": wilson(hits, count)}
        )
    return bins


def _png(image: Tensor | None, low: float, high: float) -> str | None:
    """A data URI; None for no image, or one of neither 1 nor 3 channels."""
    if image is None or image.shape[0] not in (1, 3):
        return None
    file = encoded((image.double() - low) / ((high - low) or 1.0), "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
