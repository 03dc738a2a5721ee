"""Whatever happens, and wherever, the user's model, data and process are afterwards as they were."""

import copy

import pytest
import torch
from torch import nn

import simprune as sp
from simprune.core.weights import digest

CALLS = [0, 0]  # of `Fragile`, and the call that fails


class Interrupted(BaseException):
    """As when a user presses Ctrl-C, but nobody else raises it."""


class Fragile(nn.Module):
    """Fails when it, or a copy of it, is called so often."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CALLS[0] += 1
        if CALLS[0] == CALLS[1]:
            raise Interrupted
        return x


class Mixed(nn.Module):
    """BatchNorm in training mode, Dropout in evaluation mode, attention, a frozen layer, a hook, a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1).eval())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), Fragile(), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.head.requires_grad_(False)
        self.register_buffer("shared", self.head.weight.detach())
        self.stem.register_forward_hook(lambda module, args, output: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = (x + self.block(x)).flatten(2).mT
        return self.head(self.attention(x, x, x)[0].mean(1))


def state(model: nn.Module) -> list:
    """All that a stage could leave behind in a model and in the process."""
    hooks = [name for name in nn.Linear(1, 1).__dict__ if name.endswith("hooks")]
    return [
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [{name: len(getattr(module, name)) for name in hooks} for module in model.modules()],
        [sorted(module.__dict__) for module in model.modules()],
        [(name, id(value), value.requires_grad, value.grad) for name, value in model.named_parameters()],
        [(name, id(value)) for name, value in model.named_buffers()],
        digest(model),
        (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
        ),
        (torch.backends.mha.get_fastpath_enabled(), torch.are_deterministic_algorithms_enabled()),
    ]


def case():
    torch.manual_seed(0)
    x = torch.randn(48, 1, 6, 6)
    return Mixed().train(), [(rows, torch.arange(len(rows)) % 4) for rows in x.split(16)]


def whole_path(model, data) -> None:
    """Every stage once."""
    sp.compress(
        model,
        calibration=data,
        train=data,
        test=data,
        budget={"macs": 0.7},
        structures=("channels", "blocks", "heads"),
        reconstruct="blockwise",
        finetune=1,
        trials=[0.5],
        control=1,
        gates=[sp.Gate("disagreement", limit=1.0)],
        planner={"name": "greedy", "finalists": 2},
    )


@pytest.fixture(scope="module")
def calls() -> int:
    """How often the layer is called in all stages; the model is as it was when they are done."""
    model, data = case()
    model.stem[3].eval()
    before, inputs = state(model), copy.deepcopy(data)
    CALLS[:] = [0, -1]
    whole_path(model, data)
    assert state(model) == before
    assert all(
        torch.equal(a, b) for one, other in zip(inputs, data, strict=True) for a, b in zip(one, other, strict=True)
    )
    return CALLS[0]


# The latency of the whole ends a run, and its number of calls differs from run to run.
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_stage_that_is_interrupted_leaves_no_trace(calls, share):
    model, data = case()
    before = state(model)
    CALLS[:] = [0, max(1, round(share * calls))]
    with pytest.raises(Interrupted):
        whole_path(model, data)
    assert state(model) == before
