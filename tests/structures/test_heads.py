"""Laws of attention heads, on every kind of attention that is known."""

import copy

import pytest
import torch
from torch import nn

from simprune.api import apply
from simprune.core.batches import call
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.measures import get
from simprune.structures import structure
from simprune.structures.heads import head_group
from simprune.trace.attention import attentions
from simprune.trace.cost import cost_model, measure_cost
from simprune.trace.network import Network
from tests.architectures import language_models
from tests.architectures.networks import batches, make
from tests.networks import estimated

WITH_HEADS = ("vit", "vit_separate", "encoder", "encoder_pre_norm", "bert", "hf_vit", "llama", "gpt2")


def plan_of(model, batch, *edits):
    return Plan(edits, fingerprint(model), describe(example_of(batch)))


def silenced(model, group, units):
    """The original whose output projection does not hear these heads."""
    model = copy.deepcopy(model)
    for part in group.slices:
        if part.side == "in":
            index = torch.tensor([i for unit in units for i in part.indices[unit]])
            model.get_parameter(part.tensor).data.index_fill_(part.dim, index, 0.0)
    return model


@pytest.mark.parametrize("name", WITH_HEADS)
def test_removed_equals_silenced_at_the_predicted_cost(name):
    model, batch = make(name), batches(name)[0]
    example = example_of(batch)
    groups, refused = structure("heads").find(Network(model, example))
    assert [group.size for group in groups] == [4, 4]
    assert refused == []
    first, second = groups
    edits = [
        Edit("heads", group.name, group.expand(units), group.width) for group, units in ((first, [0, 2]), (second, [1]))
    ]
    small = apply(plan_of(model, batch, *edits), model)
    expected = silenced(silenced(model, first, [0, 2]), second, [1])
    with torch.no_grad():
        torch.testing.assert_close(call(small, batch), call(expected, batch), rtol=1e-5, atol=1e-5)
        small.train()
        call(small, batch)  # runs in training mode too
    assert measure_cost(small, example) == cost_model(model, example).after(first.cut([0, 2]) | second.cut([1]))


@pytest.mark.parametrize("name", ["vit", "encoder_pre_norm", "llama", "gpt2"])
def test_heads_stream_and_hidden_units_go_together(name):
    model, batch = make(name), batches(name)[0]
    example = example_of(batch)
    groups = [
        *structure("channels").find(Network(model, example))[0],
        *structure("heads").find(Network(model, example))[0],
    ]
    edits = [Edit(group.kind, group.name, group.expand([0, 2]), group.width) for group in groups]
    cut = {}
    for group in groups:
        for key, count in group.cut([0, 2]).items():
            cut[key] = cut.get(key, 0) + count
    small = apply(plan_of(model, batch, *edits), model)
    assert measure_cost(small, example) == cost_model(model, example).after(cut)
    assert apply(plan_of(model, batch, *reversed(edits)), model).state_dict().keys() == small.state_dict().keys()


@pytest.mark.parametrize("name", ["vit", "encoder", "llama", "gpt2"])
def test_a_planted_duplicate_is_the_most_redundant_head(name):
    model, calibration = make(name), batches(name, rows=16)  # enough to tell apart all inputs of a projection
    group = structure("heads").find(Network(model, example_of(calibration[0])))[0][0]
    layout = attentions(model)[group.name]
    for rows in layout.rows:  # head group 3 makes what head group 1 makes
        tensor = model.get_parameter(rows.tensor).data
        source, target = (torch.tensor(layout.entries(rows, unit)) for unit in (1, 3))
        tensor.index_copy_(rows.dim, target, tensor.index_select(rows.dim, source))
    redundancy = estimated(model, calibration, get("cka_debiased"), ("heads",))
    entry = redundancy.channels[0]
    assert entry.name == group.name
    assert entry.order[0] in (1, 3)
    assert entry.redundancy[entry.order[0]] > 0.99 > max(entry.redundancy[unit] for unit in (0, 2))


def test_the_table_counts_heads():
    table = estimated(make("bert"), batches("bert"), get("cka_debiased"), ("heads",)).table()
    assert "4 heads" in table
    assert "heads by second_order" in table


def test_query_heads_that_share_a_key_go_together():
    model, batch = make("llama"), batches("llama")[0]
    (group, _), _ = structure("heads").find(Network(model, example_of(batch)))
    assert group.units == ((0, 1), (2, 3), (4, 5), (6, 7))
    with pytest.raises(ValueError, match=r"heads \[2, 3\] of .* can only go together"):
        apply(plan_of(model, batch, Edit("heads", group.name, (0, 1, 2), 8)), model)


@pytest.mark.parametrize(
    "edit, message",
    [
        (Edit("heads", "blocks.0.attn", (0,), 5), "has 4 heads, not 5"),
        (Edit("heads", "blocks.0.mlp", (0,), 4), "has no heads that can be removed"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(edit, message):
    model, batch = make("vit"), batches("vit")[0]
    with pytest.raises(ValueError, match=message):
        apply(plan_of(model, batch, edit), model)


class Odd(nn.Module):
    """Attention that never runs, attention of one head, and attention of unknown parts, beside a plain layer."""

    def __init__(self):
        super().__init__()
        self.idle = nn.MultiheadAttention(8, 2)
        self.single = nn.MultiheadAttention(8, 1, batch_first=True)
        self.strange = nn.Module()
        self.strange.num_heads, self.strange.mixture = 2, nn.Linear(8, 8)

    def forward(self, x):
        x = self.single(x, x, x)[0]
        return self.strange.mixture(x).mean(1)


def test_what_cannot_be_done_is_said():
    groups, refused = structure("heads").find(Network(Odd(), ((torch.randn(2, 5, 8),), {})))
    assert groups == []
    reasons = dict(refused)
    assert "takes no part" in reasons["idle"]
    assert "single" in reasons["single"]
    assert "not known" in reasons["strange"]


class Rescaled(nn.Module):
    """Looks like fused attention, but its heads are interleaved: head h owns rows h, h + heads, ..."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 2, 4
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.head_dim, -1)).permute(0, 3, 1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.permute(0, 2, 3, 1).flatten(2))


def test_a_layout_that_is_not_what_it_looks_like_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), Rescaled(), nn.Linear(8, 3))
    assert head_group(attentions(model)["1"]).size == 2
    groups, refused = structure("heads").find(Network(model, ((torch.randn(2, 5, 6),), {})))
    assert groups == []
    assert "differs from ignoring" in dict(refused)["1"]


FUSED = (
    "phi", "phi3", "gptneox", "falcon", "falcon_groups", "falcon_alibi", "gptbigcode", "olmo2", "cohere", "qwen3",
    "bloom", "mpt", "codegen",
)  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_heads_of_fused_projections_and_normalised_queries_go_and_texts_go_on(name):
    model, batch = language_models.make(name), language_models.batch()
    groups, refused = structure("heads").find(Network.trace(model, batch))
    assert len(groups) == 4 and refused == []
    again = structure("heads").find(Network.trace(language_models.make(name, torch.bfloat16), batch))
    assert again == (groups, [])
    group = groups[1]
    small = apply(plan_of(model, batch, Edit("heads", group.name, group.expand([0]), group.width)), model)
    if name != "olmo2":  # which normalises across all heads
        with torch.no_grad():
            torch.testing.assert_close(
                call(small, batch), call(silenced(model, group, [0]), batch), rtol=1e-5, atol=1e-5
            )
    prompt = batch["input_ids"][:, :6]
    texts = [small.generate(prompt, max_new_tokens=5, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*texts)


def test_a_head_that_goes_later_leaves_the_biases_of_the_others_in_place():
    model, batch = language_models.make("bloom"), language_models.batch()
    name = "transformer.h.1.self_attention"
    at_once = apply(plan_of(model, batch, Edit("heads", name, (0, 2), 4)), model)
    first = apply(plan_of(model, batch, Edit("heads", name, (0,), 4)), model)
    later = apply(plan_of(first, batch, Edit("heads", name, (1,), 3)), first)  # it was number 2
    with torch.no_grad():
        assert torch.equal(call(later, batch), call(at_once, batch))


def test_adapters_are_named_with_what_to_do():
    peft = pytest.importorskip("peft")
    model, batch = language_models.make("llama"), language_models.batch()
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2)
    adapted = peft.tuners.lora.LoraModel(model, config, "default").eval()
    groups, refused = structure("heads").find(Network.trace(adapted, batch))
    assert groups == [] and len(refused) == 4
    assert all(reason.endswith("merge them first: model = model.merge_and_unload()") for _, reason in refused)
    assert len(structure("heads").find(Network.trace(adapted.merge_and_unload(), batch))[0]) == 4


class Demanding(nn.Module):
    """Fused attention whose output is reshaped to a width that is written down."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 2, 4
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(2, 5, 8))


def test_reasons_speak_no_other_library_s_words():
    model = nn.Sequential(nn.Linear(6, 8), Demanding(), nn.Linear(8, 3))
    groups, refused = structure("heads").find(Network(model, ((torch.randn(2, 5, 6),), {})))
    assert groups == []
    assert dict(refused)["1"].startswith("without one of its heads 1 fails (test_heads.py, line ")
    assert "invalid for input" not in dict(refused)["1"]


class Chunked(nn.Module):
    """Attention with a norm of its own, one projection cut by `chunk`, and a dropout behind the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm, self.to_qkv = 4, nn.LayerNorm(12), nn.Linear(12, 3 * 4 * 5, bias=False)
        self.to_out = nn.Sequential(nn.Linear(4 * 5, 12), nn.Dropout(0.1))

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.to_qkv(self.norm(x)).chunk(3, -1)
        )
        return self.to_out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Chunked()

    def forward(self, x):
        return x + self.inner(x)


def test_heads_cut_by_chunk_go_and_so_does_the_stream_around_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), Added(), Added(), nn.Linear(12, 3)).eval()
    x = torch.randn(2, 7, 6)
    network = Network(model, ((x,), {}))
    (heads, refused), (channels, _) = (structure(kind).find(network) for kind in ("heads", "channels"))
    assert [group.size for group in heads] == [4, 4] and refused == []
    assert [group.size for group in channels] == [12]
    edits = [Edit(group.kind, group.name, group.expand([1, 2]), group.width) for group in [*heads, *channels]]
    small = apply(plan_of(model, x, *edits), model)
    assert small[1].inner.to_qkv.weight.shape == (3 * 2 * 5, 10) and small[1].inner.norm.normalized_shape == (10,)
    assert small(x).shape == (2, 7, 3)
