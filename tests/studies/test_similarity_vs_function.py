"""Similarity against function: what follows the answers has correlation 1, and a network is nearest to itself."""

import numpy as np
import pytest

from simprune.studies.similarity_vs_function import KINDS, correlation, findings_of
from simprune.zoo import VGG


def pairs(seed=0):
    rng, made = np.random.default_rng(seed), []
    for network in "abcdef":
        for kind in KINDS:
            distance = float(rng.random())
            measures = {"follows": distance**3, "ignores": float(rng.random()), "unknown": None}
            made.append(
                {"network": network, "kind": kind, "measures": measures, "functional": {"disagreement": distance}}
            )
    return made


def test_a_measure_that_follows_the_answers_has_correlation_one():
    assert correlation(pairs(), "follows", ["disagreement"]) == pytest.approx((1, 1, 1))
    value, low, _ = correlation(pairs(), "ignores", ["disagreement"])
    assert low < 0.6 and abs(value) < 0.6
    assert np.isnan(correlation(pairs(), "unknown", ["disagreement"])[0])


def test_findings_put_it_first_and_check_the_controls():
    measures = ["follows", "ignores"]
    same = [{"itself": dict.fromkeys(measures, -1.0), "another order": {"follows": 2.0, "ignores": 0.0}}]
    findings = findings_of(pairs(), same, measures, ["disagreement"], 0)
    assert findings.table("measures").column("measure") == measures
    assert findings.controls[0] == "Every network is nearest to itself by every measure."
    assert "by ignores" in findings.controls[1]


def test_the_study_runs(compute):
    findings = compute("similarity_vs_function", architectures=["vgg"], seeds=2, measures=["cka"],
                       functional=["disagreement"], inputs=40, training=10)  # fmt: skip
    assert findings.table("distances").column("relative") == [*KINDS]
    assert findings.controls[0] == "Every network is nearest to itself by every measure."
    with pytest.raises(ValueError, match="leave out models"):
        compute("similarity_vs_function", models=[lambda: VGG(1, 4, (4,), (1,), 8)])
