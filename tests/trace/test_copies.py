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
