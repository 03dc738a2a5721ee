"""Gauss-Newton on blocks: against least squares where that is exact, and what may never happen."""

import copy

import pytest
import torch
from torch import nn

from simprune.core.holdout import held_out
from simprune.repair.gauss_newton import JUDGING, _Linearised, fit_block
from simprune.trace.context import eval_mode


class Residual(nn.Module):
    """Two convolutions with BatchNorm around a shortcut; the activation works in place."""

    def __init__(self, width: int = 4, hidden: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.norm1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2, self.norm2 = nn.Conv2d(hidden, width, 3, padding=1), nn.BatchNorm2d(width)
        for norm in (self.norm1, self.norm2):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))) + x)


LAYERS = {"conv1": "norm1", "conv2": "norm2"}


def calls(count: int, *shape: int) -> list[tuple[tuple, dict]]:
    torch.manual_seed(1)
    return [((torch.randn(shape),), {}) for _ in range(count)]


@torch.no_grad()
def outputs(block: nn.Module, inputs: list[tuple[tuple, dict]]) -> list[torch.Tensor]:
    with eval_mode(block):
        return [block(args[0].clone()) for args, _ in inputs]


def pairs(inputs: list[tuple[tuple, dict]], wanted: list[torch.Tensor]) -> list[tuple]:
    return [(call, target, 1.0) for call, target in zip(inputs, wanted, strict=True)]


def test_a_linear_layer_is_solved_in_one_round(monkeypatch):
    monkeypatch.setattr("simprune.repair.gauss_newton.DAMPINGS", (1e-3,))
    inputs = calls(9, 20, 5)
    block = nn.Sequential(nn.Linear(5, 3))
    wanted = [torch.randn(20, 3) for _ in inputs]
    fit_block(block, {"0": None}, pairs(inputs, wanted), rounds=1, iterations=20)
    fitted = ~held_out(0, 180, share=JUDGING)  # the other inputs judge
    x = torch.cat([args[0] for args, _ in inputs]).double()[fitted]
    rows = torch.cat([x, torch.ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(rows, torch.cat(wanted).double()[fitted]).solution
    solved = torch.cat([block[0].weight, block[0].bias[:, None]], 1)
    torch.testing.assert_close(solved.double().T, solution, rtol=0, atol=2e-3)  # damped by 1e-3


def test_a_block_finds_back_to_weights_that_give_the_wanted_output():
    inputs = calls(9, 16, 4, 6, 6)
    wanted = outputs(Residual(), inputs)
    block = Residual()
    with torch.no_grad():
        for parameter in (block.conv1.weight, block.conv2.weight, block.conv2.bias):
            parameter += 0.05 * torch.randn_like(parameter)
    norm = copy.deepcopy(block.norm1.state_dict())
    before, after = fit_block(block, LAYERS, pairs(inputs, wanted), rounds=4, iterations=10)
    assert after < 0.02 * before
    held = held_out(0, 144, share=JUDGING)
    target = torch.cat(wanted)[held]
    judged = torch.cat(outputs(block, inputs))[held] - target
    spread = (target - target.mean()).square().sum()
    assert judged.square().sum() / spread == pytest.approx(after, rel=1e-3)  # what is returned is what was written
    for key in ("weight", "bias", "running_var"):
        assert torch.equal(block.norm1.state_dict()[key], norm[key])


def test_push_and_pull_are_adjoint():
    inputs = calls(2, 3, 4, 5, 5)
    block = Residual().double().eval()
    inputs = [((args[0].double(),), {}) for args, _ in inputs]
    zeros = [torch.zeros_like(output) for output in outputs(block, inputs)]
    with torch.no_grad():
        linear = _Linearised(block, ["conv1", "conv2"], pairs(inputs, zeros))
        step = {name: torch.randn_like(part) for name, part in linear.pull(linear.errors).items()}
        errors = [torch.randn_like(error) for error in linear.errors]
        pushed = sum(float((a * b).sum()) for a, b in zip(linear.push(step), errors, strict=True))
        pulled = sum(float((part * step[name]).sum()) for name, part in linear.pull(errors).items())
    assert pushed == pytest.approx(pulled, rel=1e-9)


def test_what_cannot_be_improved_stays_and_held_out_error_never_grows():
    inputs = calls(3, 4, 4, 5, 5)
    block = Residual()
    state = copy.deepcopy(block.state_dict())
    assert max(fit_block(block, LAYERS, pairs(inputs, outputs(block, inputs)))) < 1e-12
    for key, value in block.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-5, atol=1e-6)
    before, after = fit_block(block, LAYERS, pairs(inputs, [torch.randn(4, 4, 5, 5) for _ in inputs]))
    assert after <= before


def test_outputs_that_do_not_count_have_no_part():
    inputs = calls(4, 8, 4, 5, 5)
    wanted, counts = outputs(Residual(seed=3), inputs), [torch.ones(8, 1, 5, 5) for _ in inputs]
    for count in counts:
        count[:, :, :, 3:] = 0
    results = []
    for garbage in (0.0, 100.0):
        block = Residual()
        targets = [target + garbage * (1 - count) for target, count in zip(wanted, counts, strict=True)]
        errors = fit_block(block, LAYERS, list(zip(inputs, targets, counts, strict=True)))
        results.append((block.conv1.weight.detach().clone(), errors[1] / errors[0]))
    assert results[0][1] < 1
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)


def test_a_channel_that_batchnorm_silences_keeps_its_weights():
    inputs = calls(4, 8, 4, 5, 5)
    block = Residual()
    with torch.no_grad():
        block.norm1.weight[2] = 0
    silent = block.conv1.weight[2].clone()
    before, after = fit_block(block, LAYERS, pairs(inputs, outputs(Residual(seed=3), inputs)))
    assert after < before
    assert torch.equal(block.conv1.weight[2], silent)
    assert all(parameter.isfinite().all() for parameter in block.parameters())


def test_inputs_modes_and_flags_stay():
    inputs = calls(3, 4, 4, 5, 5)
    before = [args[0].clone() for args, _ in inputs]
    block = Residual()
    block.norm1.eval()
    block.conv1.weight.requires_grad_(False)
    modes = [module.training for module in block.modules()]
    fit_block(block, LAYERS, pairs(inputs, outputs(Residual(seed=3), inputs)))
    assert all(torch.equal(args[0], old) for (args, _), old in zip(inputs, before, strict=True))
    assert [module.training for module in block.modules()] == modes
    assert not block.conv1.weight.requires_grad
    assert block.conv2.weight.requires_grad
    assert isinstance(block.norm1, nn.BatchNorm2d)
