import torch
from torch import nn

from simprune.api import apply, reconstruct
from simprune.core.plan import Edit
from simprune.trace.network import Network
from simprune.trace.shortcuts import find_shortcuts
from simprune.zoo.residual import ResidualCNN
from tests.networks import build
from tests.structures.test_contract import plan_of


def found(model, x, layers):
    return find_shortcuts(model, Network(model, ((x,), {})).block_calls, layers)


def test_the_gain_of_a_normalised_branch_is_its_scale_over_its_deviation():
    model, x = build("Residual")
    shortcut = found(model, x, ["blocks.0.conv1", "blocks.0.conv2"])["blocks.0.conv2"]
    norm = model.blocks[0].bn2
    torch.testing.assert_close(shortcut.gain, norm.weight / (norm.running_var + norm.eps).sqrt(), rtol=1e-2, atol=1e-3)


def test_what_passes_by_is_the_input_or_its_padded_half():
    model = ResidualCNN(in_channels=3, widths=(4, 8), depths=(1, 1), shortcut="A").eval()
    shortcuts = found(model, torch.randn(2, 3, 8, 8), ["layer1.0.conv2", "layer2.0.conv2"])
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(shortcuts["layer1.0.conv2"].original(x), x)
    passed = shortcuts["layer2.0.conv2"].original(x)
    assert torch.equal(passed[:, 2:6], x[:, :, ::2, ::2])
    assert not passed[:, :2].any()


def test_projected_shortcuts_and_plain_stacks_have_none():
    projected = ResidualCNN(in_channels=3, widths=(4, 8), depths=(1, 1), shortcut="B").eval()
    assert "layer2.0.conv2" not in found(projected, torch.randn(2, 3, 8, 8), ["layer2.0.conv2"])
    model, x = build("Flat")
    assert found(model, x, ["conv1", "conv2", "fc1", "fc2"]) == {}


def test_no_block_runs_where_what_it_gives_is_known():
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(*widths, 3), nn.ReLU()) for widths in ((3, 6), (6, 4)))).eval()
    blocks, runs = Network(model, ((torch.randn(2, 3, 8, 8),), {})).block_calls, []
    for part in model.modules():
        part.register_forward_hook(lambda module, *_: runs.append(module))  # copies have these hooks as well
    assert [*blocks.calls] == ["0", "1"]
    assert find_shortcuts(model, blocks, ["0.0", "1.0"]) == {}
    assert runs
    assert not {*runs} & {*model.modules()}


def test_a_removed_block_is_made_up_for_better_than_layer_by_layer(monkeypatch):
    model, _ = build("Residual")
    x = torch.randn(256, 3, 8, 8)
    plan = plan_of(model, x, Edit("block", "blocks.0"))

    def left():
        small = apply(plan, model)
        reconstruct(small, plan, model, [x])
        with torch.no_grad():
            return float((small(x) - model(x)).square().mean())

    with_shortcuts = left()
    monkeypatch.setattr("simprune.repair.prepare.find_shortcuts", lambda *_: {})
    assert with_shortcuts < left()


def test_stream_channels_and_shortcuts_go_together():
    model, _ = build("Residual")
    x = torch.randn(128, 3, 8, 8)
    plan = plan_of(model, x, Edit("channels", "stem.0", (1, 4), 8), Edit("channels", "blocks.0.conv1", (2,), 8))
    small = apply(plan, model)
    with torch.no_grad():
        before = float((small(x) - model(x)).square().mean())
        reconstruct(small, plan, model, [x])
        assert float((small(x) - model(x)).square().mean()) < before


class Summary(torch.nn.Module):
    """Ends with one number per channel that goes to all positions, as squeeze-and-excitation does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.summary = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv(x).relu()
        return x + inner + self.summary(inner.mean((2, 3), keepdim=True))


def test_a_layer_of_another_shape_than_its_block_gives_cannot_take_errors_back():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), Summary(), torch.nn.Conv2d(4, 2, 1))
    x = torch.randn(16, 3, 5, 5)
    assert found(model, x, ["1.conv", "1.summary"]) == {}
    plan = plan_of(model, x, Edit("channels", "0", (0,), 4))
    small = apply(plan, model)
    assert [each.layer for each in reconstruct(small, plan, model, [x])] == ["1.conv", "1.summary", "2"]
