"""Trial removals: expected damage becomes measured damage, kind by kind."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import simprune as sp
from simprune.checks import Gate
from simprune.core.holdout import held_out
from simprune.trace.answers import answer, relative_error
from simprune.trace.network import Network
from simprune.tune.trials import calibrate
from simprune.zoo.residual import ResidualCNN


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=3, widths=(8, 16), depths=(2, 2), shortcut="A").eval()
    batches = list(torch.randn(96, 3, 8, 8).split(12))
    return model, batches, sp.analyze(model, batches)


def ratios(before, after):
    return {
        ("block", old.name): new.damage / old.damage for old, new in zip(before.blocks, after.blocks, strict=True)
    } | {
        ("channels", old.name): sum(new.damage) / sum(old.damage)
        for old, new in zip(before.channels, after.channels, strict=True)
    }


def test_damages_scale_by_what_trials_at_their_depth_measured(case):
    model, batches, found = case
    scaled = calibrate(found, Network.trace(model, next(iter(batches))), batches, (0.3,))
    factors = ratios(found, scaled)
    for kind, entries in (("block", found.blocks), ("channels", found.channels)):
        trials = [trial for trial in scaled.trials if trial.kind == kind]
        names = [entry.name for entry in entries]
        assert [trial.first for trial in trials] == [part[0] for part in np.array_split(names, 3)]
        centres = [(names.index(trial.first) + names.index(trial.last)) / 2 for trial in trials]
        logs = [math.log(trial.measured / trial.expected) for trial in trials]
        for place, name in enumerate(names):
            assert math.log(factors[kind, name]) == pytest.approx(np.interp(place, centres, logs), abs=0.006)  # rounded
    for old, new in zip(found.entries, scaled.entries, strict=True):
        assert (new.redundancy, new.name) == (old.redundancy, old.name)


def test_the_trial_is_what_a_user_would_measure(case):
    model, batches, found = case
    trial = calibrate(found, Network.trace(model, next(iter(batches))), batches, (0.3,)).trials[0]
    (block,) = [entry for entry in found.blocks if entry.name == trial.first == trial.last]
    plan = sp.plan(replace(found, blocks=(block,), channels=()), {"macs": trial.macs})
    small = sp.apply(plan, model)
    inputs = torch.cat(batches)
    held = held_out(0, len(inputs))
    sp.reconstruct(small, plan, model, [inputs[~held]])
    lost = relative_error(answer(small, [inputs[held]]).logits, answer(model, [inputs[held]]).logits)
    assert (trial.measured, trial.expected) == (pytest.approx(lost, rel=1e-4), pytest.approx(plan.expected["damage"]))


def test_trials_look_at_the_first_inputs_only(case, monkeypatch):
    model, batches, found = case
    monkeypatch.setattr("simprune.tune.finalists.INPUTS", 36)
    assert (
        calibrate(found, Network.trace(model, next(iter(batches))), batches, (0.3,)).trials
        == calibrate(found, Network.trace(model, next(iter(batches[:3]))), batches[:3], (0.3,)).trials
    )


def test_no_trials_change_nothing_and_one_batch_is_refused(case):
    model, batches, found = case
    assert calibrate(found, Network.trace(model, next(iter(batches))), batches, ()) == found
    with pytest.raises(ValueError, match="give two or more; got 1"):
        calibrate(found, Network.trace(model, next(iter(batches[:1]))), [batches[0][:1]], (0.2,))


def test_compress_reports_trials_and_outcome(case):
    model, batches, _ = case
    result = sp.compress(model, calibration=batches, test=batches[:2], budget={"macs": 0.6}, trials=(0.3,), gates=[
        Gate("disagreement", 1.0)
    ])  # fmt: skip
    assert {trial["kind"] for trial in result.report["redundancy"]["trials"]} == {"block", "channels"}
    outcome = result.report["plan"]["expected"]["outcome"]
    assert outcome == result.report["stages"][-1]["damage"] > 0
