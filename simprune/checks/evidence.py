"""What a verdict's page shows beside the gates, collected batch by batch: a few numbers per input, a few pictures."""

import base64
import heapq
import io
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor

from simprune.checks.corruptions import image_of
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
    """Sees every batch with both models' outputs. A change is the distance of both class distributions, in [0, 1].

    Where outputs are not class scores (`class_scores` False) it is the distance of outputs relative to the original's,
    and only the inputs that changed most are found.
    """

    def __init__(self, class_scores: bool = True) -> None:
        self.class_scores = class_scores
        self._classes: list[np.ndarray] = []  # (N, 2) predictions, int32
        self._confidence: list[np.ndarray] = []  # (N, 2), float32
        self._labels: list[np.ndarray] = []
        self._most: list[tuple[float, int, dict[str, Any], Tensor | None]] = []
        self._count, self._width = 0, 0

    def __call__(self, batch: Any, a: Tensor, b: Tensor, labels: Tensor | None) -> None:
        images, facts = image_of(batch), [dict[str, Any]() for _ in range(len(a))]
        if self.class_scores:
            outputs = Outputs.of(a), Outputs.of(b)
            p, q = (each.probabilities for each in outputs)
            change = (p - q).abs().sum(1) / 2
            classes = torch.stack([each.classes for each in outputs], 1).int().numpy()
            confidence = torch.stack([p.amax(1), q.amax(1)], 1).float().numpy()
            self._classes.append(classes)
            self._confidence.append(confidence)
            self._width = p.shape[1]
            for fact, (before, after), (sure_before, sure_after) in zip(
                facts, classes.tolist(), confidence.tolist(), strict=True
            ):
                fact |= {"before": before, "after": after}
                fact |= {"confidence_before": sure_before, "confidence_after": sure_after}
            if labels is not None and labels.ndim == 1:
                self._labels.append(labels.cpu().int().numpy())
                for fact, label in zip(facts, labels.tolist(), strict=True):
                    fact["label"] = label
        else:
            x, y = (each.double().flatten(1) for each in (a, b))
            change = (x - y).norm(dim=1) / x.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        for i in change.argsort(descending=True)[:SHOWN].tolist():
            picture = None if images is None else images[i].detach().cpu().clone()
            entry = (float(change[i]), -(self._count + i), facts[i], picture)  # the earlier one wins a tie
            (heapq.heappush if len(self._most) < SHOWN else heapq.heappushpop)(self._most, entry)
        self._count += len(a)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; pictures are data URIs of PNG files."""
        found: dict[str, Any] = {"count": self._count, "class_scores": self.class_scores, "examples": self._examples()}
        if not self.class_scores or not self._classes:
            return found
        classes, confidence = np.concatenate(self._classes), np.concatenate(self._confidence)
        found |= self._changes(classes)
        if self._labels:
            labels = np.concatenate(self._labels)
            found["recall"] = self._recall(classes, labels)
            found["reliability"] = {
                name: _bins(confidence[:, i], classes[:, i] == labels) for i, name in enumerate(("original", "pruned"))
            }
        return found

    def _changes(self, classes: np.ndarray) -> dict[str, Any]:
        pairs, counts = np.unique(classes[classes[:, 0] != classes[:, 1]], axis=0, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:LONGEST]
        found: dict[str, Any] = {
            "changed": int(counts.sum()),
            "changes": [{"before": int(pairs[i, 0]), "after": int(pairs[i, 1]), "count": int(counts[i])} for i in most],
        }
        if self._width <= FULL_MATRIX:
            flat = np.bincount(classes[:, 0] * self._width + classes[:, 1], minlength=self._width**2)
            found["confusion"] = flat.reshape(self._width, self._width).tolist()
        return found

    def _recall(self, classes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
        rows = []
        for label in np.unique(labels).tolist():
            of = classes[labels == label] == label
            count, (before, after) = len(of), of.sum(0).tolist()
            rows.append(
                {"class": label, "count": count, "before": before / count, "after": after / count}
                | {"before_bounds": wilson(before, count), "after_bounds": wilson(after, count)}
            )
        if len(rows) > LONGEST:  # those that lost most
            rows = sorted(rows, key=lambda row: row["after"] - row["before"])[:LONGEST]
        return rows

    def _examples(self) -> list[dict[str, Any]]:
        most = sorted(self._most, key=lambda entry: entry[:2], reverse=True)
        pictures = [picture for *_, picture in most if picture is not None]
        low = min((float(each.min()) for each in pictures), default=0.0)
        high = max((float(each.max()) for each in pictures), default=1.0)
        return [
            {"index": -place, "change": change, **fact, "picture": _png(picture, low, high)}
            for change, place, fact, picture in most
        ]


def _bins(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Equal-width bins (lo, hi] that hold inputs, in order."""
    which = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    found = []
    for i in np.unique(which).tolist():
        inside = which == i
        count, hits = int(inside.sum()), int(right[inside].sum())
        found.append(
            {"low": i / BINS, "high": (i + 1) / BINS, "count": count, "accuracy": hits / count}
            | {"confidence": float(confidence[inside].mean()), "bounds": wilson(hits, count)}
        )
    return found


def _png(image: Tensor | None, low: float, high: float) -> str | None:
    """A data URI; None for no image, or one of neither 1 nor 3 channels."""
    if image is None or image.shape[0] not in (1, 3):
        return None
    from PIL import Image

    pixels = ((image.double() - low) / ((high - low) or 1.0) * 255).round().clamp(0, 255).to(torch.uint8)
    array = pixels.movedim(0, 2).numpy()
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
