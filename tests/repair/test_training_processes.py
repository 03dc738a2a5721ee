"""Training in two processes is that of one; mixed precision trains the weights as they are."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from simprune.core.pieces import dealt
from simprune.repair.training import finetune
from tests.repair.training_processes import CASES, job

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes end with, by case."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-W", "ignore", "-m", "tests.repair.training_processes", str(folder)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return {case: [torch.load(folder / f"{case}-{rank}.pt") for rank in range(2)] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_with_the_weights_of_one(two, case):
    model, history = job(case)
    first, second = two[case]
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    relative, absolute = (2e-2, 2e-2) if case == "bf16" else (1e-4, 1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=relative, atol=absolute)
    judged = torch.tensor([row["held_out"] for row in history])
    torch.testing.assert_close(first["history"][: len(judged)], judged, rtol=relative, atol=absolute)
    assert any(row["kept"] for row in history)


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
