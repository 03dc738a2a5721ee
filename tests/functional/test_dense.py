"""Measures of dense outputs against scikit-learn, and how they treat pixels that do not count."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from simprune import functional
from simprune.functional.dense import near_boundaries

C = 4


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, C, 5, 7, generator=generator)
    b = a + 0.7 * torch.randn(6, C, 5, 7, generator=generator)
    labels = (a + torch.randn(6, C, 5, 7, generator=generator)).argmax(1)
    labels[0, :2] = 255
    return a, b, labels


def measure(id, *args, labels=None, **options):
    return functional.get(id, **options)(*args, labels=labels)


def test_iou_is_that_of_scikit_learn(case):
    a, b, labels = case
    counts = labels.flatten() != 255
    of = [
        jaccard_score(labels.flatten()[counts], x.argmax(1).flatten()[counts], average=None, labels=range(C))
        for x in (a, b)
    ]
    assert measure("miou_drop", a, b, labels=labels) == pytest.approx(np.mean(of[0] - of[1]))
    score = measure("max_class_iou_drop", a, b, labels=labels)
    assert score == pytest.approx(np.max(of[0] - of[1]))
    assert score.details["original"] == pytest.approx(of[0]) and score.details["pruned"] == pytest.approx(of[1])


def test_shares_of_pixels_are_those_written_out(case):
    a, b, labels = case
    counts, x, y = labels != 255, a.argmax(1), b.argmax(1)

    def share(events):
        return float(np.mean([events[i][counts[i]].double().mean() for i in range(len(a))]))

    assert measure("pixel_disagreement", a, b, labels=labels) == pytest.approx(share(x != y))
    assert measure("pixel_disagreement", a, b) == pytest.approx(float((x != y).double().mean()))
    drop = measure("pixel_accuracy_drop", a, b, labels=labels)
    assert drop == pytest.approx(share(x == labels) - share(y == labels))
    near = near_boundaries(x, 2)
    expected = np.mean([(x != y)[i][near[i]].double().mean() for i in range(len(a))])
    assert measure("boundary_disagreement", a, b) == pytest.approx(expected)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_boundary_is_as_wide_as_asked_for(axis, width):
    classes = torch.zeros(1, 12, 12).long()
    classes.narrow(axis, 5, 7).fill_(1)
    near = near_boundaries(classes, width)
    assert near.sum() == 12 * 2 * width and near.narrow(axis, 5 - width, 2 * width).all()
    assert not near_boundaries(torch.ones(1, 3, 3).long(), width).any()


def test_one_channel_is_foreground():
    logits = torch.tensor([[[[-1.0, 1.0, 1.0]]]])
    assert measure("pixel_disagreement", logits, -logits) == 1
    assert measure("pixel_accuracy_drop", logits, -logits, labels=[[[0, 1, 0]]]) == pytest.approx(2 / 3 - 1 / 3)


def test_positions_may_lie_along_any_number_of_axes(case):
    a, b, labels = case
    for id in ("pixel_disagreement", "miou_drop", "max_class_iou_drop", "pixel_accuracy_drop"):
        flat = measure(id, a.flatten(2), b.flatten(2), labels=labels.flatten(1))
        deep = measure(id, a[:, :, None], b[:, :, None], labels=labels[:, None])
        assert flat == deep == measure(id, a, b, labels=labels)


def test_images_without_pixels_that_count_are_skipped_or_the_reason_is_said(case):
    a, b, labels = case
    some, none = labels.clone(), torch.full_like(labels, 255)
    some[1:] = 255
    assert measure("pixel_disagreement", a, b, labels=some).skipped == 5
    assert "ignore_index" in measure("miou_drop", a, b, labels=none).reason
    assert measure("boundary_disagreement", torch.zeros_like(a), b).reason.endswith(
        "no image has a boundary between classes"
    )
    shifted = torch.where(labels == 255, -100, labels)
    assert measure("miou_drop", a, b, labels=shifted, ignore_index=-100) == measure("miou_drop", a, b, labels=labels)
    with pytest.raises(ValueError, match=r"lie in \[0, 4\).*or be 255"):
        measure("miou_drop", a, b, labels=shifted)


def test_images_of_different_sizes_are_one_test_set(case):
    a, b, labels = case
    for id in ("pixel_disagreement", "miou_drop"):
        stream = functional.get(id).stream()
        stream.update((a[:3], b[:3]), labels[:3])
        stream.update((a[3:, :, :4], b[3:, :, :4]), labels[3:, :4])
        blank = labels.clone()
        blank[3:, 4:] = 255
        assert stream.score() == pytest.approx(measure(id, a, b, labels=blank))
