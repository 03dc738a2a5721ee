"""Prediction: where outcomes follow from what is known, intervals hold what they promise; else they say so."""

import math

import numpy as np
import pytest
import torch

from simprune.studies import prediction as study
from simprune.studies.summaries.prediction import PREDICTORS, findings_of
from simprune.studies.tools.left_out import features, loss_of, loss_scale, predicted


def cases_of(noise, seed=0, networks=20, each=15):
    """Plans whose lost agreement follows from the expected damage, times noise that no feature knows."""
    rng, cases = np.random.default_rng(seed), []
    for network in range(networks):
        for _ in range(each):
            expected = float(np.exp(rng.uniform(-6, -1)))
            loss = min(0.5 * expected * float(np.exp(noise * rng.normal())), 0.9)
            guess = {"agreement": expected, "accuracy": 0.5 * expected}
            cases.append({
                "network": f"net {network}", "architecture": f"kind {network % 4}", "curve": "width", "count": 1000,
                "expected damage": expected, "kept share": float(rng.uniform(0.3, 1)), "random": False, "guess": guess,
                "trial ratio": 0.0, "trial seconds": 0.1, "seconds": 2.0, "original": 0.95,
                "agreement": 1 - loss, "accuracy": 0.95 - 0.5 * loss,
            })  # fmt: skip
    return cases


USED = PREDICTORS["expected damage"]


def quality(cases, wanted=USED):
    made = predicted(cases, "agreement", wanted, "network")
    errors = [abs(one[0] - case["agreement"]) for case, one in zip(cases, made, strict=True)]
    inside = [one[1] <= case["agreement"] <= one[2] for case, one in zip(cases, made, strict=True)]
    return np.median(errors), np.mean(inside)


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_intervals_cover_what_they_promise_on_networks_that_were_left_out(noise):
    error, coverage = quality(cases_of(noise))
    assert 0.85 <= coverage <= 0.96
    assert error < 0.03 * noise


def test_what_is_known_makes_errors_smaller_than_the_cost_alone():
    cases = cases_of(0.1)
    assert quality(cases)[0] < 0.3 * quality(cases, PREDICTORS["cost alone"])[0]


def test_a_network_does_not_see_its_own_outcomes():
    cases = cases_of(0.3)
    before = predicted(cases, "agreement", USED, "network")
    for case in cases:
        if case["network"] == "net 3":
            case["agreement"] = 0.1
    after = predicted(cases, "agreement", USED, "network")
    for case, one, other in zip(cases, before, after, strict=True):
        if case["network"] == "net 3":
            assert one == other


def test_the_scale_of_losses_goes_back():
    for loss in (0.0, 0.003, 0.4):
        assert loss_of(loss_scale(loss, 800), 800) == pytest.approx(loss, abs=1e-12)
    assert loss_of(5.0, 800) == 1.0 and loss_of(-50.0, 800) == 0.0


def test_noise_changes_more_answers_the_larger_it_is():
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    curves = study._simulated(logits, logits.argmax(1), torch.Generator().manual_seed(0))
    changed = curves["agreement"]
    assert changed[0] < 0.02 and changed[-1] > 0.5 and (np.diff(changed) >= 0).all()
    np.testing.assert_allclose(curves["accuracy"], changed, atol=0.05)  # labels are the answers


def test_findings_say_whether_it_holds():
    findings = findings_of(cases_of(0.1))
    assert "this holds" in findings.conclusions[0]
    assert findings.table("quality").rows[0][3] == 300
    assert "this does not hold" in findings_of(cases_of(3.0)).conclusions[0]
    assert all(math.isfinite(value) for case in cases_of(0.1)[:3] for value in features(case, "accuracy", USED))


def test_the_study_runs(compute):
    findings = compute("prediction", architectures=["vgg"], seeds=3, shares=[0.7, 0.4], inputs=48, training=10)
    assert findings.table("quality").rows[0][3] == 12
