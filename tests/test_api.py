"""The whole path on a small trained network, from outside."""

import json

import pytest
import torch
from torch import nn

import simprune as sp
from tests.networks import build

TRAINING = {"epochs": 3, "select": "loss"}  # which calibration inputs do not judge


@pytest.fixture(scope="module")
def result(trained):
    model, data = trained
    return sp.compress(
        model, calibration=data, train=data, test=data, budget={"macs": 0.5}, finetune=TRAINING, control=2
    )


def test_every_stage_is_in_the_table(result):
    rows = {row["name"]: row for row in result.report["stages"]}
    assert list(rows) == ["original", "pruned", "reconstructed", "fine-tuned", "random control"]
    assert rows["original"]["agreement"] == 1
    assert rows["fine-tuned"]["macs"] <= 0.5 * rows["original"]["macs"]
    assert rows["random control"]["macs"] <= 0.5 * rows["original"]["macs"]
    assert rows["reconstructed"]["agreement"] >= rows["pruned"]["agreement"]
    assert all(row["latency_ms"] > 0 and row["bytes"] > 0 for row in rows.values())


def test_the_report_is_plain_data(result):
    assert json.loads(json.dumps(result.report, allow_nan=False)) == result.report
    assert result.report["plan"]["edits"]
    assert result.report["verdict"]["outcome"] == result.verdict.outcome


def test_the_original_is_untouched(trained, result):
    model, data = trained
    rows = result.report["stages"]
    correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    assert rows[0]["accuracy"] == pytest.approx(correct / 240)


def test_step_by_step_equals_compress(trained, result):
    model, data = trained
    redundancy = sp.analyze(model, data, measure="cka_debiased", structures=("channels", "blocks"))
    plan = sp.plan(redundancy, budget={"macs": 0.5})
    assert plan.to_yaml() == result.plan.to_yaml()
    small = sp.apply(plan, model)
    sp.reconstruct(small, plan, model, data)
    sp.finetune(small, data, teacher=model, **TRAINING)
    x = data[0][0]
    torch.testing.assert_close(small(x), result.model(x), rtol=1e-4, atol=1e-4)
    assert sp.validate(model, small, data).to_dict() == result.verdict.to_dict()


def test_a_given_plan_is_applied_as_it_is(trained, result):
    model, data = trained
    edited = sp.Plan.from_yaml(result.plan.to_yaml())
    again = sp.compress(model, calibration=data, test=data, plan=edited, finetune=None)
    assert again.plan == result.plan
    assert again.report["settings"]["planner"] == "a given plan"
    assert not any("edited" in note for note in again.report["notes"])


def test_an_edited_plan_is_applied_and_the_notes_say_that_it_was_edited(trained, result):
    model, data = trained
    content = result.plan.to_dict()
    edited = sp.Plan.from_dict(content | {"edits": content["edits"][:1]})
    again = sp.compress(model, calibration=data, plan=edited, finetune=None)
    assert again.plan == edited
    assert any("the plan was edited" in note for note in again.report["notes"])


def test_without_data_what_needs_it_is_left_out_and_said_so(trained):
    model, data = trained
    result = sp.compress(model, calibration=[x for x, _ in data], budget={"params": 0.6})
    assert result.verdict is None
    assert {"no test batches: accuracy, agreement and the checks were left out"} <= set(result.report["notes"])
    assert all(row["accuracy"] is None for row in result.report["stages"])


def test_labels_are_optional_in_the_test_set(trained):
    model, data = trained
    result = sp.compress(model, calibration=data, test=[x for x, _ in data])
    assert result.report["stages"][1]["accuracy"] is None
    assert 0 <= result.report["stages"][1]["agreement"] <= 1
    assert {gate["measure"] for gate in result.report["verdict"]["gates"]} == {
        "disagreement",
        "jensen_shannon_divergence",
    }


@pytest.mark.parametrize(
    "reconstruct, stage", [("fold", "folded"), ("bn", "BatchNorm re-estimated"), ("none", "pruned")]
)
def test_other_repairs(trained, reconstruct, stage):
    model, data = trained
    result = sp.compress(model, calibration=data, test=data, reconstruct=reconstruct)
    assert result.report["stages"][-1]["name"] == stage


class Keyed(nn.Module):
    """Takes a dict, gives a dict, as models from the transformers library do."""

    def __init__(self):
        super().__init__()
        self.inner = build("Tokens")[0]

    def forward(self, features, mask=None):
        return {"logits": self.inner(features)}


def test_dicts_in_and_out():
    batches = [{"features": torch.randn(12, 7, 6), "mask": None, "labels": torch.arange(12) % 5} for _ in range(3)]
    result = sp.compress(Keyed().eval(), calibration=batches, train=batches, test=batches, finetune=1)
    assert result.report["stages"][-1]["accuracy"] is not None


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"measure": "ckaa"}, KeyError, "cka"),
        ({"planner": "gredy"}, KeyError, "greedy"),
        ({"budget": {"macs": 2}}, ValueError, "fraction"),
        ({"structures": ["layers"]}, KeyError, "blocks, channels"),
        ({"reconstruct": "magic"}, KeyError, "least_squares"),
    ],
)
def test_wrong_arguments_are_one_clear_error(trained, options, error, message):
    model, data = trained
    with pytest.raises(error, match=message):
        sp.compress(model, calibration=data, **options)


def test_a_gate_that_does_not_fit_is_an_error_before_the_work(monkeypatch):
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), [torch.randn(16, 4)] * 2
    monkeypatch.setattr(
        "simprune.stages.estimate", lambda *_, **__: pytest.fail("analysed before the gates were looked at")
    )
    with pytest.raises(ValueError, match="token_agreement needs token logits"):
        sp.compress(model, calibration=batches, test=batches, gates=[sp.Gate("token_agreement", 0.9)])
