"""Grounding: a score equal to the damage has correlation 1, random numbers none, and a removal is what it says."""

import math

import numpy as np
import pytest
import torch

from simprune.studies.frame import Run, Subject
from simprune.studies.networks import answers, damage
from simprune.studies.summaries.grounding import findings_of
from simprune.studies.tools.correlations import by_network, correlation
from simprune.studies.tools.removals import Bench, calibration_of, plan_of, removals
from simprune.zoo import ViT


def case(network, kind, value, rng):
    """A removal whose damages are known, with a score that equals them, its opposite, and noise."""
    said = {"score: exact": value, "score: opposite": -value, "random numbers": float(rng.random())}
    stages = {"removed": value, "repaired": value**2, "finetuned": None}
    return {"network": f"net {network}", "architecture": "mlp", "kind": kind, "said": said, **stages}


@pytest.fixture
def cases():
    rng = np.random.default_rng(0)
    return [case(network, "channel", float(rng.random()), rng) for network in range(30) for _ in range(20)]


def test_a_score_equal_to_the_damage_has_correlation_one(cases):
    assert correlation(cases, "score: exact", "removed") == pytest.approx((1, 1, 1))
    assert correlation(cases, "score: opposite", "repaired") == pytest.approx((-1, -1, -1))
    assert math.isnan(correlation(cases, "score: exact", "finetuned")[0])


def test_random_numbers_have_none(cases):
    value, low, high = correlation(cases, "random numbers", "removed")
    assert abs(value) < 0.15 and low < 0.05 and high > -0.05


def test_networks_of_other_scales_do_not_count_in_the_correlation_within_a_network(cases):
    for one in cases:
        if one["network"] == "net 0":
            one["said"]["score: exact"] *= 1000
    assert correlation(cases, "score: exact", "removed")[0] == pytest.approx(1)
    assert len(by_network(cases, "score: exact", "removed")) == 30


def test_findings_put_the_best_score_first_and_say_so(cases):
    choices = [
        {"network": network, "layer": "fc", "score": score, "removed": 1.0, "repaired": cost}
        for network in ("a", "b") for score, cost in (("random", 1.0), ("good", 0.25))
    ]  # fmt: skip
    findings = findings_of(cases, choices, 0)
    assert findings.table("width").column("score")[0] == "exact"
    assert findings.table("choices").rows[0][0] == "good"
    assert findings.table("choices").rows[0][2] == pytest.approx([0.25] * 3)
    assert "exact 1.00" in findings.conclusions[0]
    assert any("random numbers" in sentence for sentence in findings.controls)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    model = ViT(1, 4, 8, 2, width=8, depth=2, heads=2, hidden=8).eval()
    return Subject("vit 0", "vit", model, "vit")


def test_removals_are_of_every_kind_and_each_is_one_edit_that_does_what_it_says(vit, tmp_path, images_file):
    run = Run(tmp_path, tmp_path, data=str(images_file))
    calibration = calibration_of(run.images, 32, 0)
    bench = Bench(run, vit, calibration)
    redundancy = bench.redundancy
    most = {"block": 1, "half": 1, "channel": 1, "channels": 1, "head": 1}
    drawn = removals(redundancy, most, np.random.default_rng(0))
    assert [removal.kind for removal in drawn] == ["block", "half", "channel", "channels", "head"]
    assert all(0 < removal.share < 1 for removal in drawn)
    block = drawn[0]
    cost = bench.outcome(block)
    number = int(block.name.rpartition(".")[2])
    by_hand = torch.nn.Sequential(*(b for i, b in enumerate(vit.model.blocks) if i != number))
    other = ViT(1, 4, 8, 2, width=8, depth=2, heads=2, hidden=8).eval()
    other.load_state_dict(vit.model.state_dict())
    other.blocks = by_hand
    images = run.images.test
    assert cost["removed"] == pytest.approx(damage(answers(other, images), answers(vit.model, images)), rel=1e-4)
    assert cost["repaired"] < cost["removed"] and cost["finetuned"] is None
    assert plan_of(redundancy, block.edit).blocks == (block.name,)


def test_the_study_runs_and_a_trial_removal_predicts_nearly_all(compute):
    findings = compute(
        "grounding", architectures=["residual"], seeds=1, channels=4, others=3, layers=1, inputs=64, finetune=0,
        training=10, groups=0, scores=["magnitude"], block_scores=["similarity"], measures=["cka"],
    )  # fmt: skip
    width = {row[0]: row[1:] for row in findings.table("width").rows}
    assert {"magnitude", "magnitude, expected damage", "trial removal", "cost alone", "random numbers"} == set(width)
    assert width["trial removal"][0][0] > 0.8
    depth = findings.table("depth").column("score")
    assert "similarity" in depth and "measure: cka" in depth
    assert findings.table("removals").column("kind") == ["block", "channel", "channels"]
