"""How a batch is shared out; mixed precision trains the weights as they are; what accelerate is not asked for."""

import pytest
import torch
from torch import nn

from simprune.core.pieces import dealt
from simprune.repair.training import finetune

pytest.importorskip("accelerate")


def test_every_input_of_a_batch_falls_to_one_process():
    batch = {"x": torch.arange(7)[:, None], "labels": torch.arange(7)}
    parts = [dealt(batch, rank, 3) for rank in range(3)]
    assert sorted(torch.cat([part["labels"] for part, _ in parts]).tolist()) == [*range(7)]
    assert all(counts for _, counts in parts)
    whole = {"x": torch.zeros(7, 2), "y": torch.zeros(5)}  # which does not say how it divides
    assert [dealt(whole, rank, 2) for rank in range(2)] == [(whole, True), (whole, False)]
    assert dealt({"x": torch.zeros(3), "scale": torch.tensor(2.0)}, 1, 2)[0]["scale"] == 2
    assert [counts for _, counts in (dealt(torch.zeros(2, 3), rank, 4) for rank in range(4))] == [
        True,
        True,
        False,
        False,
    ]


def test_precision_is_that_of_the_passes_and_not_of_the_weights():
    seen = []
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda module, args, output: seen.append((module.training, output.dtype)))
    x = torch.randn(40, 4)
    history = finetune(model, [(x, x[:, :3].argmax(1))], epochs=8, lr=0.05, precision="bf16")
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
    assert {dtype for training, dtype in seen if not training} == {torch.float32}  # what is judged is what stays
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert history[-1]["loss"] < history[0]["loss"]
    finetune(model, [(x, x[:, :3].argmax(1))], epochs=1)  # the next one may have another precision


def test_half_precision_on_a_cpu_is_refused_before_any_work():
    with pytest.raises(ValueError, match="fp16 needs a GPU; got a model on the CPU"):
        finetune(nn.Linear(4, 3), [(torch.zeros(2, 4), torch.zeros(2).long())], precision="fp16")


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED"])
def test_a_divided_model_is_refused_before_any_work(way, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with pytest.raises(ValueError, match=f"every process trains the whole model, and ACCELERATE_USE_{way} asks"):
        finetune(nn.Linear(4, 3), [(torch.zeros(2, 4), torch.zeros(2).long())])


def test_what_accelerate_launch_sets_changes_no_training(monkeypatch):
    x, ends = torch.randn(32, 4), []
    for steps in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        finetune(model, [(x, x[:, :3].argmax(1))], epochs=2, lr=0.1, precision="bf16")
        ends.append(model.weight)
    assert torch.equal(*ends)
