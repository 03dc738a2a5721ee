"""Equal networks are equal with or without sketches; a planted relation between data sets is recovered."""

import warnings

import pytest
import torch

from simprune.studies.across_data_sets import INDICES, PARTS, _tasks, similarity
from simprune.studies.images import read_images
from simprune.studies.networks import build


@pytest.mark.parametrize("sketch", [None, 16])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("index", INDICES)
def test_a_layer_is_equal_to_itself_rotated_and_scaled(part: str, index: str, sketch: int | None) -> None:
    features, gradients = torch.randn(2, 40, 5)
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    other = 3 * features @ turn, 0.5 * gradients @ turn.T
    assert similarity((features, gradients), other, part, index, sketch) == pytest.approx(1, abs=1e-4)


def test_a_sketch_raises_the_similarity_of_unrelated_layers() -> None:
    a, b = torch.randn(2, 2, 400, 5)
    for index in INDICES:
        values = [similarity(tuple(a), tuple(b), "both", index, sketch) for sketch in (16, 64, None)]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[2] + 0.2


def test_data_sets_grow_further_apart(images_file) -> None:
    images = read_images(str(images_file))
    for family in ("classes", "pixels", "noise"):
        tasks = _tasks(images, family, 3, seed=0)
        relations = [task.relation for task in tasks]
        assert relations[0] == 1
        assert relations == sorted(relations, reverse=True)
        assert len({task.images.digest for task in tasks}) == 3
    distances = [(task.images.test - images.test).square().sum() for task in _tasks(images, "noise", 4, seed=0)]
    assert distances == sorted(distances)


def test_a_planted_relation_is_recovered(compute) -> None:
    options = {"families": ("pixels",), "levels": 2, "architecture": "vgg", "seeds": 1, "steps": 60, "shuffles": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        findings = compute("across_data_sets", inputs=(60, 40), sketch=16, **options)
    rows = {tuple(row[:4]): row for row in findings.table("tau").rows}
    assert rows["pixels", "common", "features", "CKA"][4][0] == 1
    for key, row in rows.items():
        if key[1] == "common":
            assert row[6] > row[7], "pairing the images adds similarity"
    assert rows["pixels", "own", "both", "CKA"][7] > rows["pixels", "common", "both", "CKA"][7], "a sketch adds more"
    assert all(row[3] > 0.5 for row in findings.table("accuracy").rows)


def test_families_and_levels_are_checked(run_study, images_file) -> None:
    with pytest.raises(ValueError, match="families: expected some of classes, pixels, noise"):
        run_study("across_data_sets", families=["colour"])
    with pytest.raises(ValueError, match="levels must be at least 2"):
        run_study("across_data_sets", levels=1)
    model = build("vgg", read_images(str(images_file)))
    with pytest.raises(ValueError, match="leave out models"):
        run_study("across_data_sets", models=[lambda: model])
