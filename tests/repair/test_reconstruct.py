"""Laws of the closed-form repair."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from simprune.api import apply, reconstruct
from simprune.core.plan import Edit
from simprune.repair.lockstep import Advance, lockstep
from tests.networks import build
from tests.structures.test_contract import plan_of


@torch.no_grad()
def error(small, model, x):
    return float((small(x) - model(x)).square().sum() / model(x).square().sum())


@pytest.mark.parametrize("network, layer", [("Flat", "conv1"), ("Flat", "fc1"), ("Residual", "blocks.0.conv1")])
def test_removing_an_exact_duplicate_is_repaired_exactly(network, layer):
    model, x = build(network)
    parts = (f"{layer}.", layer.replace("conv1", "bn1") + ".")
    for name, tensor in model.state_dict().items():
        if name.startswith(parts) and tensor.ndim:
            if name.endswith("bias"):
                tensor[0] = 0.5  # alive behind the ReLU
            tensor[1].copy_(tensor[0])
    plan = plan_of(model, x, Edit("channels", layer, (0,), len(model.get_submodule(layer).weight)))
    small = apply(plan, model)
    assert error(small, model, x) > 1e-6
    reconstruct(small, plan, model, [torch.randn(400, *x.shape[1:])], ridge=1e-9)
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", ["Residual", "Flat", "Concat"])
def test_the_repair_helps_and_reports_it(network):
    model, x = build(network)
    layer = {"Residual": "blocks.0.conv1", "Flat": "conv2", "Concat": "join"}[network]
    plan = plan_of(model, x, Edit("channels", layer, (0, 1), len(model.get_submodule(layer).weight)))
    small, batches = apply(plan, model), list(torch.randn(96, *x.shape[1:]).split(32))
    before = error(small, model, torch.cat(batches))
    refits = reconstruct(small, plan, model, batches)
    assert error(small, model, torch.cat(batches)) < before
    assert refits
    assert all(0 <= refit.after <= refit.before + 1e-6 for refit in refits)


def test_one_linear_layer_equals_ridge_regression_of_the_change_by_numpy():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(200, 4)
    plan = plan_of(model, x, Edit("channels", "0", (1, 4), 6))
    small = apply(plan, model)
    present = small[2].weight.detach().double().numpy().copy()
    reconstruct(small, plan, model, [x[:90], x[90:]], ridge=1e-2)
    hidden, target = small[:2](x).detach().double().numpy(), model(x).detach().double().numpy()
    centred = hidden - hidden.mean(0)
    gram = centred.T @ centred
    wanted = centred.T @ (target - target.mean(0) - centred @ present.T)
    weight = present + np.linalg.solve(gram + 1e-2 * np.diag(gram).mean() * np.eye(4), wanted).T
    np.testing.assert_allclose(small[2].weight.detach(), weight, atol=1e-5)
    np.testing.assert_allclose(small[2].bias.detach(), target.mean(0) - weight @ hidden.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    "conv, shape",
    [
        (nn.Conv2d(4, 5, 3, stride=2, padding=1, dilation=2), (4, 9, 7)),
        (nn.Conv2d(4, 5, (1, 3), padding="same"), (4, 6, 6)),
        (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), (4, 6, 6)),
        (nn.Conv1d(4, 5, 3, padding=2), (4, 11)),
        (nn.Linear(4, 5), (3, 4)),
    ],
)
def test_patches_times_weight_is_the_layer(conv, shape):
    from simprune.trace.layers import patches, positions

    x = torch.randn(2, *shape)
    product = conv.weight.flatten(1) @ patches(conv, x) + conv.bias[:, None]
    torch.testing.assert_close(product, positions(conv, conv(x)), rtol=1e-4, atol=1e-5)


def test_nothing_to_do_does_nothing():
    model, x = build("Residual")
    empty = plan_of(model, x)
    small = apply(empty, model)
    assert reconstruct(small, empty, model, [x]) == []
    plan = plan_of(model, x, Edit("channels", "stem.0", (0,), 8))
    assert reconstruct(apply(plan, model), plan, model, [x], method="none") == []


@pytest.mark.parametrize("options, message", [({"method": "magic"}, "no repair named"), ({}, "no batches")])
def test_wrong_arguments_are_one_clear_error(options, message):
    model, x = build("Residual")
    plan = plan_of(model, x, Edit("channels", "stem.0", (0,), 8))
    with pytest.raises((ValueError, KeyError), match=message):
        reconstruct(apply(plan, model), plan, model, [], **options)


def test_the_training_mode_and_hooks_come_back():
    model, x = build("Residual")
    model.train()
    plan = plan_of(model, x, Edit("channels", "blocks.0.conv1", (0,), 8))
    small = apply(plan, model)
    reconstruct(small, plan, model, [x])
    for network in (model, small):
        assert all(module.training for module in network.modules())
        assert not any(module._forward_pre_hooks for module in network.modules())


def inputs(advance: Advance, layer: str) -> torch.Tensor:
    return torch.cat([args[0] for args, _ in advance(layer)])


def test_lockstep_sees_what_a_plain_forward_sees_and_later_layers_see_changes():
    model, x = build("Flat")
    with torch.no_grad():
        expected = torch.relu(model.conv1(x)) * 2
        with lockstep(model, [((x[:4],), {}), ((x[4:],), {})], ["conv1", "conv2"]) as advance:
            assert torch.equal(inputs(advance, "conv1"), x)
            model.conv1.weight *= 2
            model.conv1.bias *= 2
            torch.testing.assert_close(inputs(advance, "conv2"), expected)


@pytest.mark.parametrize("layers", [["conv1"], ["conv1", "conv2"]])
def test_lockstep_ends_its_passes_and_uses_their_threads_again(layers):
    model, x = build("Flat")
    counts = []
    for _ in range(3):
        with lockstep(model, [((x,), {})] * 2, layers) as advance:
            advance("conv1")
        counts.append(threading.active_count())
    assert len({*counts}) == 1


def test_lockstep_hands_errors_of_the_model_on():
    model, x = build("Flat")
    with pytest.raises(RuntimeError), lockstep(model, [((x[:, :2],), {})], ["conv2"]) as advance:
        advance("conv2")
    calls = [((x,), {})]
    with pytest.raises(ValueError, match="expected every batch to reach"), lockstep(model, calls, ["conv2"]) as advance:
        advance("conv1")


def test_fitting_whole_blocks_brings_fresh_inputs_nearer_than_layer_by_layer():
    model, x = build("Residual")
    edits = [Edit("channels", f"blocks.{block}.conv1", (0, 1, 2), 8) for block in range(2)]
    plan = plan_of(model, x, *edits)
    batches, fresh = list(torch.randn(256, *x.shape[1:]).split(32)), torch.randn(64, *x.shape[1:])
    errors = {}
    for method in ("least_squares", "blockwise"):
        small = apply(plan, model)
        refits = reconstruct(small, plan, model, batches, method)
        errors[method] = error(small, model, fresh)
    assert errors["blockwise"] < 0.9 * errors["least_squares"]
    blocks = [refit for refit in refits if refit.layer in ("blocks.0", "blocks.1")]
    assert len(blocks) == 2
    assert all(refit.after < refit.before for refit in blocks)


def test_layers_are_repaired_as_their_pattern_says(monkeypatch):
    monkeypatch.setattr("simprune.repair.nearer.LEAST", 1000)  # whether the outputs come nearer is not asked
    model, x = build("Residual")
    plan = plan_of(model, x, *(Edit("channels", f"blocks.{block}.conv1", (0, 1), 8) for block in range(2)))
    batches = list(torch.randn(64, *x.shape[1:]).split(32))
    untouched, folded, small = apply(plan, model), apply(plan, model), apply(plan, model)
    reconstruct(folded, plan, model, [], "fold")
    choice = {"blocks.0*": "fold", "blocks.1.conv1": "none", "blocks.1*": "blockwise"}
    names = {refit.layer for refit in reconstruct(small, plan, model, batches, choice)}
    assert {"blocks.1.conv2", "blocks.1"} <= names
    assert not any(name.startswith("blocks.0") or name == "blocks.1.conv1" for name in names)
    assert torch.equal(small.blocks[0].conv2.weight, folded.blocks[0].conv2.weight)
    assert torch.equal(small.blocks[1].conv1.weight, untouched.blocks[1].conv1.weight)
    with pytest.raises(ValueError, match=r"no module fits the pattern 'block\.0'"):
        reconstruct(small, plan, model, batches, {"block.0": "fold"})
