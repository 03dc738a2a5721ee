"""The same inputs give the same plan, byte for byte: whatever the threads, batch sizes, hash seeds and processes."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.zoo import ResidualCNN


class Twins(nn.Module):
    """Two branches with the same weights: every plan of it has to break ties, and rounding differs between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.second.load_state_dict(self.first.state_dict())
        self.head = nn.Linear(16, 4)
        self.head.weight.data[:, 8:] = self.head.weight.data[:, :8]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.first(x).relu(), self.second(x).relu()], 1).mean((2, 3)))


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "residual":
        return ResidualCNN(in_channels=3, classes=4, widths=(6, 12), depths=(2, 1)).eval(), torch.randn(48, 3, 8, 8)
    if name == "twins":
        return Twins().eval(), torch.randn(48, 3, 8, 8)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model[0].weight[16:], model[0].bias[16:] = model[0].weight[:16], model[0].bias[:16]
        model[2].weight[:, 16:] = model[2].weight[:, :16]  # every unit has a twin, which rounding alone tells from it
    return model, torch.randn(48, 10)


def plans(name: str, threads: int, size: int, **options: object) -> list[sp.Plan]:
    """The plans of a network for three budgets."""
    model, inputs = network(name)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        redundancy = sp.analyze(model, list(inputs.split(size)), **options)
        return [sp.plan(redundancy, {"macs": share}) for share in (0.4, 0.6, 0.8)]
    finally:
        torch.set_num_threads(before)


def text(name: str) -> str:
    return "\n".join(plan.to_yaml() for plan in plans(name, 1, 16))


CASES = [
    ("residual", {}),
    ("twins", {}),
    ("twins", {"trials": [0.4]}),
    ("duplicates", {}),
    ("duplicates", {"score": "leave_one_out_cka"}),
    ("duplicates", {"score": "correlation"}),
]


@pytest.mark.parametrize("name, options", CASES, ids=str)
@pytest.mark.parametrize("threads, size", [(2, 16), (1, 48)])
def test_threads_and_batch_sizes_change_no_edit(name, options, threads, size):
    """Of the damages, which are for the reader, the last of four digits may be rounded otherwise."""
    for one, other in zip(plans(name, 1, 16, **options), plans(name, threads, size, **options), strict=True):
        assert [replace(edit, damage=None, reason="") for edit in one.edits] == [
            replace(edit, damage=None, reason="") for edit in other.edits
        ]
        assert [edit.damage for edit in other.edits] == pytest.approx([edit.damage for edit in one.edits], rel=2e-2)
        assert dict(other.expected) == pytest.approx(dict(one.expected), rel=2e-2, abs=1e-9)


def test_hash_seeds_and_processes_at_once_change_no_byte():
    code = "import sys; from tests.test_same_plan import text; sys.stdout.write(text('residual'))"
    path = os.pathsep.join(filter(None, sys.path))
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    assert [process.communicate()[0] for process in processes] == [text("residual")] * 2
