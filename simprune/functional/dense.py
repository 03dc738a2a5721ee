"""Class scores of every pixel, (N, C, H, W) or with other positions, with labels (N, H, W): segmentation.

One channel, (N, 1, H, W), is the logit of foreground. Pixels labelled `ignore_index` do not count, with or without
need of labels. The pixels of one image are not independent, so a sample, for confidence bounds too, is an image.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simprune.functional._base import FunctionalMeasure, Score, finite, integers


@dataclass(frozen=True)
class _Dense(FunctionalMeasure):
    """A measure of the classes of pixels; subclasses turn them into rows, one per image."""

    ignore_index: int = 255

    form = "maps"

    def _output(self, value: Any, what: str) -> Tensor:
        expected = "(N, C, H, W), or (N, C) with other positions behind, with N >= 1 images"
        return finite(value, what, expected, lambda x: x.ndim >= 3, torch.float32)

    def _alike(self, sample: tuple[int, ...]) -> tuple[int, ...]:
        return sample[:1]  # images of one batch may be larger than those of another

    def _truth(self, labels: Any, shape: tuple[int, ...]) -> Tensor:
        return integers(labels, (shape[0], *shape[2:]), max(shape[1], 2), self.ignore_index)

    def _rows(self, outputs: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        predicted = [logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long() for logits in outputs]
        counts = torch.ones_like(predicted[0], dtype=torch.bool) if labels is None else labels != self.ignore_index
        return self._images(predicted[0], predicted[1], labels, counts, max(outputs[0].shape[1], 2))

    def _images(self, a: Tensor, b: Tensor, labels: Tensor | None, counts: Tensor, classes: int) -> Tensor:
        """Rows of images from the classes (N, H, W) of both models, labels, and which pixels count."""
        raise NotImplementedError


def _share(events: Tensor, counts: Tensor) -> Tensor:
    """(N,) share of the pixels that count at which something holds; NaN for an image without such pixels."""
    return (events & counts).flatten(1).sum(1).double() / counts.flatten(1).sum(1)


@dataclass(frozen=True)
class PixelDisagreement(_Dense):
    """Share of pixels whose predicted class differs, mean over images, in [0, 1]; 0 means the same classes.

    Labels, if any, only tell which pixels count. Images without such pixels are skipped.

    >>> a, b = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0]]]])
    >>> PixelDisagreement()(a, b)
    0.5
    """

    id = "pixel_disagreement"
    symmetric = True
    kind = "mean"
    skips = "no image has a pixel that counts"
    source = "disagreement, pixel by pixel"

    def _images(self, a: Tensor, b: Tensor, labels: Tensor | None, counts: Tensor, classes: int) -> Tensor:
        return _share(a != b, counts)


@dataclass(frozen=True)
class PixelAccuracyDrop(_Dense):
    """Share of pixels that a gets right minus that of b, mean over images, in [-1, 1]; negative if b is better.

    >>> a, b = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    >>> PixelAccuracyDrop()(a, b, labels=[[[0, 0]]])
    0.5
    """

    id = "pixel_accuracy_drop"
    range = (-1.0, 1.0)
    needs_labels = True
    kind = "mean"
    skips = "no image has a pixel that counts"
    source = "accuracy drop, pixel by pixel"

    def _images(self, a: Tensor, b: Tensor, labels: Any, counts: Tensor, classes: int) -> Tensor:
        return _share(a == labels, counts) - _share(b == labels, counts)


@dataclass(frozen=True)
class BoundaryDisagreement(_Dense):
    """Share of pixels near the boundaries of a's classes whose class differs, mean over images, in [0, 1].

    A boundary runs between neighbours of different classes; pixels up to `width` away are near it. Labels, if any, only
    tell which pixels count. Images without boundaries are skipped. ValueError unless width >= 1.

    >>> a, b = torch.zeros(1, 2, 1, 6), torch.zeros(1, 2, 1, 6)
    >>> a[0, 1, 0, 3:], b[0, 1, 0, 4:] = 1, 1  # the boundary of b is one pixel to the right
    >>> BoundaryDisagreement(width=1)(a, b)
    0.5
    """

    width: int = 2

    id = "boundary_disagreement"
    kind = "mean"
    skips = "no image has a boundary between classes"
    source = "after boundary IoU (Cheng et al. 2021), arXiv 2103.16562, of one model against the other"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.width >= 1, f"width is a number of pixels from 1; got {self.width}")

    def _images(self, a: Tensor, b: Tensor, labels: Tensor | None, counts: Tensor, classes: int) -> Tensor:
        return _share(a != b, counts & near_boundaries(a, self.width))


def near_boundaries(classes: Tensor, width: int) -> Tensor:
    """Pixels (N, ...) within `width` of a neighbour of another class, along any axis.

    >>> near_boundaries(torch.tensor([[0, 0, 0, 1, 1, 1]]), 1).int()
    tensor([[0, 0, 1, 1, 0, 0]], dtype=torch.int32)
    """
    near = torch.zeros_like(classes, dtype=torch.bool)
    for axis in range(1, classes.ndim):
        size = classes.shape[axis]
        if size > 1:
            differs = classes.narrow(axis, 1, size - 1) != classes.narrow(axis, 0, size - 1)
            near.narrow(axis, 0, size - 1).logical_or_(differs)
            near.narrow(axis, 1, size - 1).logical_or_(differs)
    for axis in range(1, classes.ndim):  # a maximum over a box, one axis after another
        rows = near.movedim(axis, -1)
        flat = rows.reshape(-1, 1, rows.shape[-1]).float()
        wide = F.max_pool1d(flat, 2 * width - 1, stride=1, padding=width - 1)
        near = (wide > 0).reshape(rows.shape).movedim(-1, axis)
    return near


@dataclass(frozen=True)
class _ClassIoU(_Dense):
    """Rows (N, 5 C): per image and class, pixels in both label and prediction, and in either, of a and b; labels."""

    needs_labels = True
    source = "Jaccard index over all images"

    def _images(self, a: Tensor, b: Tensor, labels: Any, counts: Tensor, classes: int) -> Tensor:
        numbers = torch.arange(len(a)).view(-1, *[1] * (a.ndim - 1)).expand(a.shape)[counts]
        labels, a, b = labels[counts], a[counts], b[counts]

        def count(which: Tensor, chosen: Tensor) -> Tensor:
            flat = torch.bincount(numbers[chosen] * classes + which[chosen], minlength=len(counts) * classes)
            return flat.view(len(counts), classes).double()

        everywhere = torch.ones_like(labels, dtype=torch.bool)
        truth, columns = count(labels, everywhere), []
        for predicted in (a, b):
            both = count(labels, predicted == labels)
            columns += [both, truth + count(predicted, everywhere) - both]
        return torch.cat([*columns, truth], 1)

    def reduce(self, rows: Tensor) -> Score:
        both_a, either_a, both_b, either_b, truth = rows.sum(0).chunk(5)
        present = truth > 0
        if not present.any():
            return self._undefined(rows, "no pixel counts; all labels are ignore_index")
        a, b = (both_a / either_a)[present], (both_b / either_b)[present]
        details = {"classes": present.nonzero()[:, 0].tolist(), "original": a.tolist(), "pruned": b.tolist()}
        return Score(self._of_classes(a - b), count=len(rows), details=details)

    def _of_classes(self, drops: Tensor) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class MIoUDrop(_ClassIoU):
    """Mean intersection over union of a minus that of b, in [-1, 1]; negative if b is better.

    Pixels of all images together, mean over the classes that labels have. `details`: "classes", and the IoU of each,
    "original" and "pruned".

    >>> a, b = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    >>> MIoUDrop()(a, b, labels=[[[0, 1]]])
    0.75
    """

    id = "miou_drop"
    range = (-1.0, 1.0)

    def _of_classes(self, drops: Tensor) -> float:
        return float(drops.mean())


@dataclass(frozen=True)
class MaxClassIoUDrop(_ClassIoU):
    """Largest drop of a class's intersection over union from a to b, in [-1, 1].

    Of the classes that labels have; pixels of all images together. `details` as of `miou_drop`.

    >>> a, b = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    >>> MaxClassIoUDrop()(a, b, labels=[[[0, 1]]])
    1.0
    """

    id = "max_class_iou_drop"
    range = (-1.0, 1.0)

    def _of_classes(self, drops: Tensor) -> float:
        return float(drops.max())
