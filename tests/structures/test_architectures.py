"""Blocks of every kind of network are found, removed, and rebuilt from a bundle's plan or a saved checkpoint."""

import copy

import pytest
import torch
from torch import nn

from simprune.api import apply
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.structures import structure
from simprune.trace.cost import cost_model, measure_cost
from simprune.trace.network import Network
from tests.structures.architectures import BLOCKS, build

pytestmark = pytest.mark.filterwarnings("ignore:from_pretrained cannot open:UserWarning")  # no configuration says so

HALVES = {
    "resnet": 0, "resnet-imagenet": 0, "zoo-vit": 8, "mobilenet": 0, "convnext": 0, "post-norm": 0,
    "pre-norm": 4, "bert": 4, "vit": 8, "llama": 8, "gpt2": 8,
}  # fmt: skip


def plan_of(model, batch, *edits):
    return Plan(edits, fingerprint(model), describe(example_of(batch)))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_and_halves_are_found_and_cost_what_they_say(name):
    model, batch = build(name)
    example = example_of(batch)
    blocks, refused = structure("blocks").find(Network(model, example))
    assert [block.name for block in blocks] == BLOCKS[name]
    assert refused == []
    halves, _ = structure("sub_blocks").find(Network(model, example))
    assert len(halves) == HALVES[name]
    assert all(half.inside in BLOCKS[name] for half in halves)
    costs = cost_model(model, example)
    for block in (blocks[1], *halves[:1]):
        small = apply(plan_of(model, batch, Edit("block", block.name, replace=block.replace)), model)
        assert measure_cost(small, example) == costs.after(dropped=[block.name]) != costs.total()


def test_chains_end_where_the_shape_changes():
    model, batch = build("resnet")
    assert [block.chain for block in structure("blocks").find(Network(model, example_of(batch)))[0]] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("name", ["bert", "vit", "llama", "gpt2"])
def test_transformers_layers_are_deleted_and_survive_a_checkpoint(name, tmp_path):
    model, batch = build(name)
    before = copy.deepcopy(model.config.to_dict())
    small = apply(plan_of(model, batch, *(Edit("block", BLOCKS[name][i]) for i in (0, 2))), model)
    assert model.config.to_dict() == before
    assert small.config.num_hidden_layers == 2
    assert len(small.get_submodule(BLOCKS[name][0].rpartition(".")[0])) == 2
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(call(again, batch), call(small, batch))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("part", ["layer", "attention"])
def test_generation_with_and_without_a_cache_agrees(name, part):
    model, batch = build(name)
    halves = [
        half for half in structure("sub_blocks").find(Network(model, example_of(batch)))[0] if "attn" in half.name
    ]
    edits = {
        "layer": [Edit("block", BLOCKS[name][i]) for i in (0, 2)],
        "attention": [Edit("block", halves[i].name, replace="zero") for i in (0, 2)],
    }[part]
    small = apply(plan_of(model, batch, *edits), model)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = batch["input_ids"][:2]
    with_cache, without = (small.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("name", ["pre-norm", "llama"])
def test_a_plan_is_replayed_with_the_same_names(name):
    model, batch = build(name)
    plan = plan_of(model, batch, Edit("block", BLOCKS[name][1]))
    small, again = apply(plan, model), apply(plan, copy.deepcopy(model))
    assert list(small.state_dict()) == list(again.state_dict())
    assert f"{BLOCKS[name][3]}." not in "".join(small.state_dict())
    assert torch.equal(call(small, batch), call(again, batch))


def test_a_layer_that_makes_more_than_its_output_stays():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.randint(2, 30, (2, 5))
    blocks, refused = structure("blocks").find(Network(model, ((), {"input_ids": ids, "decoder_input_ids": ids})))
    names = [f"{half}.block.{i}" for half in ("encoder", "decoder") for i in (1, 2)]
    assert [block.name for block in blocks] == names
    assert all("later layers need" in dict(refused)[f"{half}.block.0"] for half in ("encoder", "decoder"))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = build("resnet")[0].layer1[1]
        self.again, self.head = self.first, nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.first(x.relu()).mean((2, 3)))


def test_a_module_with_two_names_is_refused():
    blocks, refused = structure("blocks").find(Network(Shared(), ((torch.randn(2, 8, 4, 4),), {})))
    assert blocks == []
    assert "several places" in dict(refused)["first"]


class Keywords(nn.Module):
    """Blocks called by keyword that hand a second value through a tuple."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([KeywordBlock() for _ in range(3)])

    def forward(self, x):
        bias = x.new_ones(6)
        for layer in self.layers:
            x, bias = layer(bias=bias, hidden=x)
        return x * bias


class KeywordBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, hidden, bias):
        return hidden + self.branch(hidden) * bias, bias


def test_keyword_arguments_and_tuples_are_handed_through():
    model, x = Keywords().eval(), torch.randn(4, 6)
    nn.init.zeros_(model.layers[1].branch[0].weight)
    nn.init.zeros_(model.layers[1].branch[0].bias)
    names = [block.name for block in structure("blocks").find(Network(model, ((x,), {})))[0]]
    assert names == ["layers.0", "layers.1", "layers.2"]
    small = apply(plan_of(model, x, Edit("block", "layers.1")), model)
    torch.testing.assert_close(small(x), model(x))
