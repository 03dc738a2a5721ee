"""Laws of applying a plan."""

import copy
from dataclasses import replace

import pytest
import torch

import simprune as sp
from simprune.api import apply
from simprune.core.plan import Edit
from simprune.structures import structure
from simprune.trace.network import Network
from tests.networks import NAMES, build
from tests.structures.test_contract import plan_of


def masked(model, group, channels):
    """The original with every reader of the group deaf to these channels."""
    model = copy.deepcopy(model)
    for part in group.slices:
        if part.side == "in":
            index = torch.tensor([i for channel in channels for i in part.indices[channel]])
            model.get_parameter(part.tensor).data.index_fill_(part.dim, index, 0.0)
    return model


@pytest.mark.parametrize("network", ["Residual", "Flat", "Concat"])
def test_masked_equals_removed(network):
    model, x = build(network)
    for group in structure("channels").find(Network(model, ((x[:2],), {})))[0]:
        gone = (0, group.size // 2)
        small = apply(plan_of(model, x, Edit("channels", group.name, gone, group.size)), model)
        torch.testing.assert_close(small(x), masked(model, group, gone)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", NAMES)
def test_an_empty_plan_changes_nothing(network):
    model, x = build(network)
    small = apply(plan_of(model, x), model)
    assert small is not model
    assert torch.equal(small(x), model(x))


def test_the_original_keeps_weights_mode_and_gradients_flags():
    model, x = build("Residual")
    model.train()
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    small = apply(plan_of(model, x, Edit("block", "blocks.1"), Edit("channels", "stem.0", (0, 1), 8)), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert small.training
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["head.weight"]


def test_the_order_of_edits_does_not_matter():
    model, x = build("Residual")
    edits = [
        Edit("block", "blocks.1"),
        Edit("channels", "stem.0", (0, 5), 8),
        Edit("channels", "blocks.0.conv1", (1, 2, 7), 8),
    ]
    one, other = apply(plan_of(model, x, *edits), model), apply(plan_of(model, x, *reversed(edits)), model)
    assert torch.equal(one(x), other(x))


def test_channels_survive_the_removal_of_the_block_that_names_them():
    model, x = build("Residual")
    named_inside = Edit("channels", "blocks.0.conv2", (3,), 8)
    with pytest.raises(ValueError, match=r"lies inside blocks\.0"):
        plan_of(model, x, Edit("block", "blocks.0"), named_inside)
    assert apply(plan_of(model, x, named_inside), model).stem[0].out_channels == 7


def test_tied_weights_stay_tied():
    model, x = build("Residual")
    model.blocks[1].conv2.weight = model.blocks[0].conv2.weight
    small = apply(plan_of(model, x, Edit("channels", "stem.0", (2,), 8)), model)
    assert small.blocks[1].conv2.weight is small.blocks[0].conv2.weight


@pytest.mark.parametrize(
    "edit, message",
    [
        (Edit("channels", "head", (0,), 5), "output"),
        (Edit("channels", "stem.0", (0,), 9), "has 8 output channels, not 9"),
        (Edit("block", "blocks.7"), "no module named 'blocks.7'; did you mean"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(edit, message):
    model, x = build("Residual")
    with pytest.raises(ValueError, match=message):
        apply(plan_of(model, x, edit), model)


@pytest.mark.parametrize(
    "described",
    [[], ["x"], [{"shpe": [2, 3], "dtype": "float32"}], [[{"shape": [2, 3], "dtype": "float32"}]],
     [{"shape": [2, 5], "dtype": "float32"}], [{"shape": [2, 1, 12, 12], "dtype": "int64"}]],
)  # fmt: skip
def test_a_plan_whose_inputs_the_model_does_not_take_is_one_line(described):
    model, x = build("Residual")
    plan = replace(plan_of(model, x), inputs={"args": described, "kwargs": {}})
    with pytest.raises(
        ValueError, match="plan: inputs: the model does not run on what they describe: \\w+Error"
    ) as error:
        apply(plan, model)
    assert "\n" not in str(error.value)


def test_a_plan_of_another_model_is_refused():
    model, x = build("Residual")
    plan = plan_of(model, x, Edit("channels", "stem.0", (0,), 8))
    model.head = torch.nn.Linear(8, 6)
    with pytest.raises(ValueError, match="made for another model"):
        apply(plan, model)


def test_an_encoder_layer_without_its_attention_runs_on_its_own():
    """torch's layer asks its attention for parameters before it decides against its fused pass."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 8)
    small = sp.apply(plan_of(model, x, Edit("block", "layers.0.self_attn", replace="zero")), model)
    with torch.no_grad():
        assert small(x).shape == x.shape
