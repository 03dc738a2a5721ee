"""Groups that are known to differ: rates are 1 where they should be, and at chance for a measure that sees nothing."""

from itertools import combinations

import numpy as np
import pytest
import torch

from simprune.studies.frame import Run
from simprune.studies.images import read_images
from simprune.studies.tools.known_groups import (
    TESTS,
    conformity,
    marked,
    measures_by_name,
    monotonicity,
    random_labels,
    rates,
    with_shortcut,
)

GROUPS = [group for group in range(4) for _ in range(5)]


def distances(of, count):
    return {(i, j): float(of(i, j)) for i, j in combinations(range(count), 2)}


def test_groups_that_are_told_apart_conform_and_chance_is_one_half():
    assert conformity(distances(lambda i, j: GROUPS[i] != GROUPS[j], 20), GROUPS) == 1
    assert conformity(distances(lambda i, j: GROUPS[i] == GROUPS[j], 20), GROUPS) == 0
    assert conformity(distances(lambda i, j: 0.0, 20), GROUPS) == 0.5
    rng = np.random.default_rng(0)
    drawn = [conformity(distances(lambda i, j: rng.random(), 20), GROUPS) for _ in range(20)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)


def test_layers_in_order_are_monotone_and_chance_is_one_third():
    assert monotonicity(distances(lambda i, j: j - i, 8), 8) == 1
    rng = np.random.default_rng(0)
    drawn = [monotonicity(distances(lambda i, j: rng.random(), 8), 8) for _ in range(40)]
    assert np.mean(drawn) == pytest.approx(1 / 3, abs=0.05)


def test_labels_and_marks_are_what_they_say(images_file):
    images, generator = read_images(str(images_file)), torch.Generator().manual_seed(0)
    changed = random_labels(images, 0.5, generator)
    assert 0.5 < (changed.train_labels == images.train_labels).float().mean() < 0.75  # one in four is right by chance
    assert torch.equal(changed.train, images.train) and torch.equal(changed.test_labels, images.test_labels)
    told = with_shortcut(images, 1.0, generator)
    places = told.train.flatten(2)[:, 0, : images.classes].argmax(1)
    assert torch.equal(places, told.train_labels)
    other = with_shortcut(images, 0.0, generator)
    places = other.train.flatten(2)[:, 0, : images.classes].argmax(1)
    assert (places == images.train_labels).float().mean() < 0.5
    assert torch.equal(
        marked(images.test, torch.zeros(len(images.test), dtype=torch.long))[:, :, 1:], images.test[:, :, 1:]
    )


def test_every_test_gives_every_measure_a_rate(tmp_path, images_file):
    run = Run(tmp_path, tmp_path / "networks", data=str(images_file), training=3)
    passed = rates(run, "vgg", 2, 40, measures_by_name(["cka", "gbs_motif", "permutation_procrustes"], {}))
    assert [*passed] == [*TESTS]
    assert all(value is None or 0 <= value <= 1 for values in passed.values() for value in values.values())
    assert all(values["cka"] is not None and values["gbs_motif"] is not None for values in passed.values())
