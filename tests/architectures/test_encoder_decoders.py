"""Laws of encoder-decoders: padding, of the encoder's tokens and of the decoder's, changes nothing."""

import pytest
import torch

import simprune as sp
from simprune.core.batches import mask_at
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint

transformers = pytest.importorskip("transformers")
WORDS = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 1}
SIZES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
HIDDEN = {  # the layers of the MLPs in encoder and decoder
    "bart": ("model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1"),
    "t5": ("encoder.block.0.layer.1.DenseReluDense.wi", "decoder.block.0.layer.2.DenseReluDense.wi"),
}


def make(name):
    torch.manual_seed(0)
    if name == "bart":
        return transformers.BartForConditionalGeneration(transformers.BartConfig(**WORDS, **SIZES)).eval()
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**WORDS, **T5)).eval()


def batches(length):
    """Batches of 8 and 6 real tokens, padded with other tokens to a length."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        batch = {}
        for side, real in (("", 8), ("decoder_", 6)):
            ids = torch.randint(3, 64, (6, real), generator=generator)
            mask = torch.ones(6, max(real, length), dtype=torch.long)
            mask[:, real:] = 0
            more = torch.full((6, max(0, length - real)), 7)
            batch |= {f"{side}input_ids": torch.cat([ids, more], 1), f"{side}attention_mask": mask}
        yield batch


def test_every_module_has_the_mask_of_its_tokens():
    batch = next(iter(batches(11)))
    for name in (
        "encoder.layers.0.fc1",
        "decoder.layers.1.encoder_attn.k_proj",
        "decoder.block.0.layer.1.EncDecAttention.v",
    ):
        assert mask_at(batch, f"{name}:input").sum() == 48
    for name in ("lm_head", "decoder.layers.1.encoder_attn.q_proj", "decoder.layers.0.self_attn.k_proj"):
        assert mask_at(batch, name).sum() == 36
    alone = {key: value for key, value in batch.items() if not key.startswith("decoder_")}
    assert mask_at(alone, "decoder.layers.0.fc1").sum() == 48


@pytest.mark.parametrize("name", HIDDEN)
def test_padding_changes_neither_scores_nor_repair(name):
    plain, padded = [*batches(0)], [*batches(11)]
    kinds = ("heads", "blocks") if name == "bart" else ("blocks",)
    found = [sp.analyze(make(name), data, structures=kinds) for data in (plain, padded)]
    for one, other in zip(found[0].entries, found[1].entries, strict=True):
        torch.testing.assert_close(torch.tensor(other.redundancy), torch.tensor(one.redundancy), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(other.damage), torch.tensor(one.damage), rtol=2e-2, atol=1e-6)
    model = make(name)
    edits = tuple(Edit("channels", layer, tuple(range(0, 24, 2)), 24) for layer in HIDDEN[name])
    plan = Plan(edits, fingerprint(model), describe(example_of(plain[0])))
    weights = []
    for data in (plain, padded):
        small = sp.apply(plan, model)
        sp.reconstruct(small, plan, model, data)
        weights.append(dict(small.named_parameters()))
    for key, weight in weights[0].items():
        torch.testing.assert_close(weights[1][key], weight, rtol=1e-3, atol=1e-4, msg=key)
