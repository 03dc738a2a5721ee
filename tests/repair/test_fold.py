"""Laws of the data-free repair."""

import copy

import pytest
import torch
from torch import nn

from simprune.api import apply, reconstruct
from simprune.core.plan import Edit
from simprune.structures import structure
from simprune.trace.network import Network
from tests.architectures.networks import batches, make
from tests.networks import NAMES, build
from tests.structures.test_contract import plan_of

GROUPS = [
    ("Residual", "blocks.0.conv1"),
    ("Residual", "stem.0"),
    ("Flat", "conv1"),
    ("Flat", "conv2"),
    ("Flat", "fc1"),
    ("Concat", "left"),
    ("Concat", "join"),
    ("Tokens", "layers.0.up"),
]


def groups_of(model, x):
    example = ((x[:2],), {})
    return [
        *structure("channels").find(Network(model, example))[0],
        *structure("heads").find(Network(model, example))[0],
    ]


def without(model, x, group, *units):
    """The plan that takes units out of a group, and the network that is left, not repaired."""
    plan = plan_of(model, x, Edit(group.kind, group.name, group.expand(units), group.width))
    return plan, apply(plan, model)


def copy_unit(model, group, source, target):
    tensors = model.state_dict()
    for part in group.slices:
        if part.side == "out":
            rows = tensors[part.tensor].movedim(part.dim, 0)
            rows[list(part.indices[target])] = rows[list(part.indices[source])]


@pytest.mark.parametrize("network, name", GROUPS)
def test_exact_duplicates_are_folded_exactly(network, name):
    model, x = build(network)
    group = next(group for group in groups_of(model, x) if group.name == name)
    copy_unit(model, group, 2, 1)
    plan, small = without(model, x, group, 1)
    assert not torch.allclose(small(x), model(x), rtol=1e-3, atol=1e-4)
    assert reconstruct(small, plan, model, [], method="fold") == []
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", ["vit", "vit_separate", "encoder_pre_norm"])
def test_duplicate_heads_are_folded_exactly(network):
    model, x = make(network), batches(network)[0]
    group = structure("heads").find(Network(model, ((x,), {})))[0][0]
    copy_unit(model, group, 2, 1)
    plan, small = without(model, x, group, 1)
    reconstruct(small, plan, model, [], "fold")
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)


def test_a_multiple_behind_a_relu_is_folded_exactly():
    model, x = build("Flat")
    with torch.no_grad():
        model.conv1.weight[3], model.conv1.bias[3] = 2.5 * model.conv1.weight[0], 2.5 * model.conv1.bias[0]
    group = next(group for group in groups_of(model, x) if group.name == "conv1")
    for gone in (0, 3):
        plan, small = without(model, x, group, gone)
        reconstruct(small, plan, model, [], "fold")
        torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)


def test_batchnorm_counts_as_part_of_the_channel():
    model, x = build("Residual")
    block = model.blocks[0]
    with torch.no_grad():  # another scale of weights and statistics, the same channel
        block.conv1.weight[3] = 4 * block.conv1.weight[0]
        block.bn1.running_mean[3] = 4 * block.bn1.running_mean[0]
        block.bn1.running_var[3] = 16 * (block.bn1.running_var[0] + block.bn1.eps) - block.bn1.eps
        block.bn1.weight[3], block.bn1.bias[3] = block.bn1.weight[0], block.bn1.bias[0]
    group = next(group for group in groups_of(model, x) if group.name == "blocks.0.conv1")
    plan, small = without(model, x, group, 3)
    reconstruct(small, plan, model, [], "fold")
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)


def test_the_variance_behind_a_reader_is_repaired_for_white_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 5, 1, bias=False), nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )
    x = torch.randn(4000, 6, 2, 2)
    with torch.no_grad():
        model.train()
        model[2].momentum = None
        model(x)
    model.eval()
    group = next(group for group in groups_of(model, x) if group.name == "0")
    plan, small = without(model, x, group, 1, 4)
    reconstruct(small, plan, model, [], "fold")
    with torch.no_grad():
        variance = small[:2](x).var((0, 2, 3))
    torch.testing.assert_close(small[2].running_var, variance, rtol=0.05, atol=0)
    assert not torch.allclose(model[2].running_var, variance, rtol=0.05)


@pytest.mark.parametrize("network", NAMES)
def test_every_group_at_once_folds_in_place_and_leaves_the_original_alone(network):
    model, x = build(network)
    before = copy.deepcopy(model.state_dict())
    edits = [Edit(group.kind, group.name, group.expand([0]), group.width) for group in groups_of(model, x)]
    plan = plan_of(model, x, *edits)
    small = apply(plan, model)
    shapes = {name: value.shape for name, value in small.state_dict().items()}
    reconstruct(small, plan, model, [], "fold")
    assert {name: value.shape for name, value in small.state_dict().items()} == shapes
    assert torch.isfinite(small(x)).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_like_nothing_is_only_left_out():
    model, x = build("Flat")
    with torch.no_grad():
        model.fc1.weight.copy_(torch.eye(10, 64))
        model.fc1.bias.zero_()
    group = next(group for group in groups_of(model, x) if group.name == "fc1")
    plan, small = without(model, x, group, 4)
    plain = copy.deepcopy(small.state_dict())
    reconstruct(small, plan, model, [], "fold")
    assert all(torch.equal(value, plain[name]) for name, value in small.state_dict().items())


def test_beside_a_block_that_goes():
    model, x = build("Residual")
    channels = Edit("channels", "blocks.0.conv1", (0, 1), 8)
    plan = plan_of(model, x, Edit("block", "blocks.1"), channels)
    small = apply(plan, model)
    reconstruct(small, plan, model, [], "fold")
    assert torch.isfinite(small(x)).all()
