"""Gates on tasks of the lm-evaluation-harness, with a stand-in for the package."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from simprune.checks import Gate, gates_of, validate

SAMPLES = 400


class Model(nn.Module):
    """Knows the answer to every example but the last few."""

    name_or_path = "some/model"

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.bias = wrong, nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return x + self.bias


@pytest.fixture
def harness(monkeypatch):
    """A package `lm_eval` that writes down what it is asked."""
    asked = []

    def simple_evaluate(model, tasks, num_fewshot, limit, log_samples, bootstrap_iters):
        assert log_samples and not model.pretrained.training
        if "unknown" in tasks:
            raise KeyError("unknown")
        asked.append((model.tokenizer, tuple(tasks), num_fewshot, limit))
        count = min(limit or SAMPLES, SAMPLES)
        rows = [{"doc_id": i, "acc": float(i >= model.pretrained.wrong), "f1": 0.5} for i in range(count)]
        filtered = [row | {"acc": 0.0} for row in rows]  # of a second filter
        return {"samples": dict.fromkeys(tasks, rows + filtered)}

    package, inner = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
    vars(package)["simple_evaluate"] = simple_evaluate
    vars(inner)["HFLM"] = lambda pretrained, tokenizer: SimpleNamespace(pretrained=pretrained, tokenizer=tokenizer)
    for name, module in {"lm_eval": package, "lm_eval.models": ModuleType("lm_eval.models")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", inner)
    monkeypatch.setattr("simprune.core.harness.load", lambda kind, name: f"{kind} of {name}")
    return asked


def checked(small, **options):
    return validate(Model(10), small, [torch.randn(4, 2)], {"name": "tasks", **options})


@pytest.mark.parametrize("wrong, outcome", [(10, "pass"), (90, "fail"), (18, "inconclusive")])
def test_a_limit_on_the_drop_of_accuracy(harness, wrong, outcome):
    verdict = checked(Model(wrong).train(), tasks=["easy", "hard"], drop=0.03)
    assert verdict.outcome == outcome
    assert [result.gate.options["tasks"] for result in verdict.results] == [("easy",), ("hard",)]
    assert [result.value for result in verdict.results] == pytest.approx([(wrong - 10) / SAMPLES] * 2)
    assert "lost and 0 gained of 400" in verdict.results[0].detail
    assert harness[0] == ("AutoTokenizer of some/model", ("easy",), None, None)


def test_the_harness_gets_the_options(harness):
    gate = Gate("task_accuracy_drop", 0.1, options={"tasks": ["easy"], "examples": 50, "shots": 3, "tokenizer": "t"})
    verdict = validate(Model(10), Model(10), [torch.randn(4, 2)], [gate])
    assert harness == [("AutoTokenizer of t", ("easy",), 3, 50)] * 2
    assert verdict.results[0].count == 50


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": ["unknown"]}, "lm_eval refuses the tasks unknown"),
        ({"tasks": []}, "there is no gate"),
        ({"tasks": ["easy"], "metric": "f1"}, "the metric must be one of acc, acc_norm, exact_match; got 'f1'"),
        ({"tasks": ["easy"], "metric": "acc_norm"}, "the task easy has no metric 'acc_norm' per example; it has acc"),
    ],
)
def test_what_does_not_fit_is_one_line(harness, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        checked(Model(10), **options)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_said_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match="the package lm_eval is not installed; pip install lm-eval"):
        gates_of({"name": "tasks", "tasks": ["easy"]})
    gate = Gate("task_accuracy_drop", 0.1, options={"tasks": ["easy"]})  # a verdict is read without the package

    class Silent(Model):
        def forward(self, x):
            raise AssertionError("the model ran")

    with pytest.raises(ValueError, match="lm_eval is not installed"):
        validate(Silent(1), Silent(1), [torch.randn(4, 2)], [gate])
