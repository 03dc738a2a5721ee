"""What a proof, a trial or an edit allocates, counted against the weights of the model: no whole copies on the way."""

import pytest
import torch
from torch import nn

from simprune.core.copies import sharing, unshare
from simprune.core.plan import Edit, Plan
from simprune.edit.apply import apply
from simprune.structures import structure
from simprune.trace.memory import _Storages
from simprune.trace.network import Network
from simprune.trace.shortcuts import zero_copy

transformers = pytest.importorskip("transformers")
BATCH = {"input_ids": torch.arange(8).reshape(2, 4)}


def build(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4
    )
    return transformers.LlamaForCausalLM(config).eval().to(dtype)


def weights_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def peak(model: nn.Module, work) -> tuple[float, object]:
    """Most bytes of tensors that exist at the same time while something works, in weights of the model; its result."""
    known = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    with _Storages(known) as storages:
        result = work()
    return storages.peak / weights_of(model), result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_proven_without_a_copy_of_the_weights(dtype):
    model = build(dtype)
    share, (blocks, _) = peak(model, lambda: structure("blocks").find(Network.trace(model, BATCH)))
    assert len(blocks) == 6
    assert share < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_proven_with_one_edited_copy_at_a_time(dtype):
    model = build(dtype)
    share, (groups, _) = peak(model, lambda: structure("channels").find(Network.trace(model, BATCH)))
    assert groups
    assert share < 1.75


def test_an_edit_holds_the_edited_model_and_no_more():
    model = build()
    network = Network.trace(model, BATCH)
    blocks, _ = structure("blocks").find(network)
    plan = Plan(tuple(Edit("block", block.name) for block in blocks[1:5]), network.fingerprint, {})
    share, small = peak(model, lambda: apply(plan, network))
    assert share < weights_of(small) / weights_of(model) + 0.2


def test_the_edited_model_has_weights_of_its_own():
    model = build()
    network = Network.trace(model, BATCH)
    plan = Plan((Edit("block", "model.layers.2"),), network.fingerprint, {})
    before, small = {name: value.clone() for name, value in model.state_dict().items()}, apply(plan, network)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tied_weights_stay_tied_in_a_copy_and_when_it_gets_weights_of_its_own():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    copy = sharing(model)
    assert copy[0].weight is copy[1].weight and copy[0].weight.data_ptr() == model[0].weight.data_ptr()
    unshare(copy, model)
    assert copy[0].weight is copy[1].weight and copy[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_a_silent_block_takes_no_memory():
    block = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    share, silent = peak(block, lambda: zero_copy(block))
    assert share < 0.01
    assert not silent(torch.ones(2, 512)).any()


def test_a_copy_that_shares_weights_is_as_a_deep_copy():
    """Also where modules are torch's own, which are copied in a shorter way: hooks, tied tensors, modes, buffers."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.BatchNorm1d(4), layer, nn.Sequential(nn.Dropout(), nn.Linear(4, 4, bias=False)))
    model[3][1].weight = layer.weight
    model[3].eval()
    layer.weight.requires_grad_(False)
    seen = []
    model[3][0].register_forward_hook(lambda *_: seen.append(1))
    small, x = sharing(model), torch.randn(8, 4)
    assert str(small) == str(model)
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    assert small[0] is small[2]
    assert small[0] is not layer
    assert small[3][1].weight is small[0].weight
    assert not small[0].weight.requires_grad
    assert small[0].weight.data_ptr() == layer.weight.data_ptr()
    before = model[1].running_mean.clone()
    small(x)
    assert seen
    assert torch.equal(model[1].running_mean, before)
    assert not torch.equal(small[1].running_mean, before)
    small[0].in_features = 5
    assert layer.in_features == 4
    small[3].register_buffer("more", x)
    small[0].register_parameter("more", None)
    assert "more" not in model.state_dict() and "more" not in layer._parameters
