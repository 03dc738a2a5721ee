"""Trial removals: expected damage becomes measured damage, kind by kind."""

import pytest
import torch

import simprune as sp
from simprune.checks import Gate
from simprune.stages import answer, relative_error
from simprune.trials import calibrate
from simprune.zoo.residual import ResidualCNN


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = ResidualCNN(in_channels=3, widths=(8, 16), depths=(2, 2), shortcut="A").eval()
    batches = list(torch.randn(96, 3, 8, 8).split(12))
    return model, batches, sp.analyze(model, batches)


def test_damages_of_a_kind_scale_by_what_the_trial_measured(case):
    model, batches, found = case
    scaled = calibrate(found, model, batches, (0.3,))
    assert {trial.kind for trial in scaled.trials} == {"block", "channels"}
    for trial in scaled.trials:
        before, after = (found.blocks, scaled.blocks) if trial.kind == "block" else (found.channels, scaled.channels)
        for old, new in zip(before, after, strict=True):
            olds, news = ((old.damage,), (new.damage,)) if trial.kind == "block" else (old.damage, new.damage)
            assert news == pytest.approx([each * trial.measured / trial.expected for each in olds])
            assert (new.redundancy, new.name) == (old.redundancy, old.name)


def test_the_trial_is_what_a_user_would_measure(case):
    model, batches, found = case
    trial = next(trial for trial in calibrate(found, model, batches, (0.3,)).trials if trial.kind == "channels")
    plan = sp.plan(sp.analyze(model, batches, structures=("channels",)), {"macs": trial.macs})
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, batches[1:])
    lost = relative_error(answer(small, batches[:1]).logits, answer(model, batches[:1]).logits)
    assert (trial.measured, trial.expected) == (pytest.approx(lost, rel=1e-4), pytest.approx(plan.expected["damage"]))


def test_no_trials_change_nothing_and_bad_ones_are_refused(case):
    model, batches, found = case
    assert calibrate(found, model, batches, ()) == found
    with pytest.raises(ValueError, match="between 0 and 1; got 1"):
        calibrate(found, model, batches, (1,))
    with pytest.raises(ValueError, match="two calibration batches or more"):
        calibrate(found, model, batches[:1], (0.2,))


def test_compress_reports_trials_and_outcome(case):
    model, batches, _ = case
    result = sp.compress(model, calibration=batches, test=batches[:2], budget={"macs": 0.6}, trials=(0.3,), gates=[
        Gate("disagreement", 1.0)
    ])  # fmt: skip
    assert {trial["kind"] for trial in result.report["redundancy"]["trials"]} == {"block", "channels"}
    outcome = result.report["plan"]["expected"]["outcome"]
    assert outcome == result.report["stages"][-1]["damage"] > 0
