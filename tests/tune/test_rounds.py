"""Pruning in rounds: plans one after the other are one plan; a round that fails is taken back."""

import pytest
import torch

import simprune as sp
from simprune.edit.apply import apply
from simprune.edit.compose import composed
from simprune.trace.network import Network
from simprune.tune.rounds import _with_weights_of, share_at
from tests.networks import NAMES, build
from tests.structures.architectures import build as architecture

LOOSE = [sp.Gate("disagreement", limit=1.0)]


def network(name):
    return build(name) if name in NAMES else architecture(name)


@pytest.mark.parametrize("name", [*NAMES, "llama", "resnet"])
def test_two_plans_are_one_plan_of_the_original(name):
    model, x = network(name)
    first = sp.plan(sp.analyze(model, [x]), {"macs": 0.75}, seed=1)
    original = Network.trace(model, x)
    small = apply(first, original)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # as training does
    here = Network.trace(small, x)
    second = sp.plan(sp.analyze(small, [x]), {"macs": 0.75}, seed=2)
    assert first.edits and second.edits
    whole = composed(first, second, original, small)
    smallest = _with_weights_of(apply(second, here), apply(whole, original), original)  # which raises where they differ
    assert sum(p.numel() for p in smallest.parameters()) < sum(p.numel() for p in small.parameters())
    assert sp.Plan.from_yaml(whole.to_yaml()) == whole


def test_rounds_reach_the_budget_and_give_a_bundle(tmp_path):
    model, x = build("Residual")
    labels = torch.arange(len(x)) % 5
    made = sp.compress(
        model, calibration=[x], test=[x], train=[(x, labels)], budget={"macs": 0.5}, rounds=3, gates=LOOSE,
        finetune={"epochs": 1, "lr": 0.01}, folder=tmp_path / "trainings",
    )  # fmt: skip
    rows = made.report["stages"]
    assert rows[-1]["macs"] <= 0.5 * rows[0]["macs"] and made.verdict and made.verdict.passed
    assert any("all 3 rounds were done" in note for note in made.report["notes"])
    assert sorted(path.name for path in (tmp_path / "trainings").iterdir()) == ["round-1", "round-2", "round-3"]
    sp.save(tmp_path / "bundle", made)
    again = sp.load(tmp_path / "bundle", build("Residual")[0])
    torch.testing.assert_close(again(x), made.model(x))


def test_a_round_that_fails_is_taken_back(monkeypatch):
    model, x = build("Residual")
    from simprune.stages import Run

    judge, calls = Run.judge, []

    def strict(self, small, gates):
        calls.append(1)
        return judge(self, small, [sp.Gate("disagreement", limit=1.0 if len(calls) < 3 else -1.0)])

    monkeypatch.setattr(Run, "judge", strict)
    made = sp.compress(model, calibration=[x], test=[x], budget={"macs": 0.4}, rounds=4, schedule="linear")
    share = made.report["stages"][-1]["macs"] / made.report["stages"][0]["macs"]
    assert len(calls) == 3 and 0.5 < share <= 0.7 and made.verdict and made.verdict.passed
    assert any("round 3 of 4 (macs 0.55): fail; the model of round 2 stays" in note for note in made.report["notes"])


def test_budgets_fall_from_round_to_round_to_the_last():
    for schedule in ("geometric", "linear"):
        shares = [share_at(number / 5, 0.3, schedule) for number in range(6)]
        assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"budget": {"latency": 0.5}}, "rounds: expected a budget of macs, params or bytes; got a budget of latency"),
        ({"budget": "smallest"}, "got budget smallest"),
        ({"planner": {"name": "threshold", "threshold": 0.9}, "budget": None}, "got planner threshold"),
        ({"rounds": 0}, "rounds: expected a whole number of at least 1"),
    ],
)
def test_what_has_no_rounds_is_refused(options, message):
    model, x = build("Residual")
    with pytest.raises(ValueError, match=message):
        sp.compress(model, calibration=[x], test=[x], **{"rounds": 2, "budget": {"macs": 0.5}} | options)
