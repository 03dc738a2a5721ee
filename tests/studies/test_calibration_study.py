"""Calibration: more inputs that change nothing are called enough, and noise is not what the network was trained on."""

import pytest
import torch

from simprune.studies.calibration import KINDS, _drawn, enough, findings_of, numbers_of
from simprune.studies.frame import Run


def cases(rate):
    return [
        {"network": network, "role": role, "kind": kind, "number": number, "draw": draw, "agreement": rate(number),
         "accuracy": rate(number), "damage": 1 - rate(number)}
        for network in "ab" for role in ("both", "repair") for kind in KINDS for number in (100, 200, 400)
        for draw in range(3)
    ]  # fmt: skip


def test_inputs_are_enough_where_the_next_ones_add_nothing():
    saturated = numbers_of(cases(lambda number: 0.9 if number == 100 else 0.95), 0)
    assert [row[5] for row in saturated] == [pytest.approx(5), pytest.approx(0), None]
    assert enough(saturated) == 200
    assert enough(numbers_of(cases(lambda number: number / 1000), 0)) is None


def test_draws_that_give_the_same_have_no_deviation():
    assert [row[4] for row in numbers_of(cases(lambda number: 0.9), 0)] == [0, 0, 0]


def test_findings_name_the_kinds():
    findings = findings_of(cases(lambda number: 0.9), 200, 0)
    assert findings.table("kinds").column("inputs") == [*KINDS]
    assert "enough" not in findings.conclusions[0] and "From 100 on" in findings.conclusions[0]


def test_inputs_of_a_kind_are_what_they_say(tmp_path, images_file):
    run = Run(tmp_path, tmp_path, data=str(images_file))
    drawn = {kind: _drawn(run, kind, 60, 1) for kind in KINDS}
    assert all(sum(len(images) for images, _ in batches) == 60 for batches in drawn.values())
    again = _drawn(run, "noise", 60, 1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(drawn["noise"], again, strict=True))
    train = {image.numpy().tobytes() for image in run.images.train}
    known = {kind: all(i.numpy().tobytes() in train for b, _ in batches for i in b) for kind, batches in drawn.items()}
    assert known == {
        "images of training": True,
        "moved images": False,
        "images of half of the classes": True,
        "noise": False,
    }


def test_the_study_runs_and_refuses_more_inputs_than_there_are(compute):
    findings = compute("calibration", architectures=["vgg"], numbers=[16, 64], draws=2, kinds_at=64, training=10)
    assert findings.table("both").column("inputs") == [16, 64]
    assert len(findings.table("kinds").rows) == len(KINDS)
    with pytest.raises(ValueError, match="kinds_at: expected at most"):
        compute("calibration", architectures=["vgg"], numbers=[10_000], training=10)
