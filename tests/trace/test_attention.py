"""nn.MultiheadAttention step by step gives what torch's own gives; layouts are recognised by their parts."""

import itertools

import pytest
import torch
from torch import nn

from simprune.trace.attention import attentions
from simprune.trace.context import eval_mode, explicit_attention
from simprune.trace.explicit import ExplicitAttention, make_explicit
from simprune.zoo import ViT

BOOL = torch.tensor([[False, True, False, False, True]] * 4)


@pytest.mark.parametrize(
    "options", [{"batch_first": True}, {}, {"bias": False, "batch_first": True}, {"kdim": 6, "vdim": 10}]
)
@pytest.mark.parametrize("need_weights, causal, padding", list(itertools.product([True, False], repeat=3)))
def test_explicit_attention_equals_torchs_own(options, need_weights, causal, padding):
    closed = nn.MultiheadAttention(8, 2, **options).eval()
    query, key, value = torch.randn(4, 5, 8), torch.randn(4, 5, options.get("kdim", 8)), None
    value = torch.randn(4, 5, options.get("vdim", 8)) if options.get("vdim") else key
    if not options.get("batch_first"):
        query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
    arguments = {
        "need_weights": need_weights,
        "attn_mask": torch.ones(5, 5).triu(1).bool() if causal else None,
        "key_padding_mask": BOOL if padding and not causal else None,
        "is_causal": causal,
    }
    expected = closed(query, key, value, **arguments)
    with explicit_attention(closed):
        assert type(closed) is ExplicitAttention
        found = closed(query, key, value, **arguments)
    assert type(closed) is nn.MultiheadAttention
    torch.testing.assert_close(found, expected)


def test_self_attention_unbatched_masks_per_head_and_weights_per_head():
    closed = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x, mask = torch.randn(3, 5, 8), torch.randn(6, 5, 5)
    for given, options in ((x, {"attn_mask": mask}), (x[0], {}), (x, {"average_attn_weights": False})):
        expected = closed(given, given, given, **options)
        with explicit_attention(closed):
            torch.testing.assert_close(closed(given, given, given, **options), expected)


def test_an_explicit_attention_leaves_the_fused_path_of_the_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = layer(x)
        make_explicit(layer.self_attn)
        torch.testing.assert_close(layer(x), expected)


def test_a_causal_hint_without_a_mask_is_refused():
    attention = nn.MultiheadAttention(8, 2)
    make_explicit(attention)
    with pytest.raises(ValueError, match="give attn_mask as well"):
        attention(*[torch.randn(5, 1, 8)] * 3, is_causal=True)


def test_layouts():
    fused, separate = attentions(ViT(depth=1)), attentions(ViT(depth=1, fused=False))
    assert fused["blocks.0.attn"].layers == {"blocks.0.attn.qkv", "blocks.0.attn.proj"}
    for found in (fused["blocks.0.attn"], separate["blocks.0.attn"]):
        assert (found.heads, found.groups, found.width, found.units) == (3, 3, 64, ((0,), (1,), (2,)))
    assert [rows.start for rows in fused["blocks.0.attn"].rows if rows.tensor.endswith("weight")] == [0, 192, 384]


@pytest.mark.parametrize("options", [{"add_zero_attn": True}, {"add_bias_kv": True}])
def test_variants_with_extra_keys_are_left_alone(options):
    model = nn.Sequential(nn.MultiheadAttention(8, 2, **options))
    assert attentions(model) == {}
    with explicit_attention(model):
        assert type(model[0]) is nn.MultiheadAttention


def test_fused_attention_comes_back_also_where_a_model_refuses_evaluation_mode():
    class Refusing(nn.Module):
        def eval(self):
            raise RuntimeError("no evaluation mode")

    with pytest.raises(RuntimeError, match="no evaluation mode"), eval_mode(Refusing()):
        pass
    assert torch.backends.mha.get_fastpath_enabled()
