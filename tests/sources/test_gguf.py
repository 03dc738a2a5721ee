"""A GGUF file becomes a model of transformers with weights in full, which saves and opens like any other."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from simprune.core.pretrained import load
from simprune.sources.transformers import pretrained

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
WIDTH, HEADS, LAYERS, HIDDEN = 32, 4, 2, 64
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "ab"]
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def llama():
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64, tie_word_embeddings=False,
        rms_norm_eps=1e-6,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small Llama of `llama`, its linear layers in eight bits, and a tokenizer, in one GGUF file."""
    folder = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(folder / "small-q8.gguf", "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(number) for number in range(len(WORDS))])
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{short}": f"model.layers.{layer}.{name}" for short, name in NAMES.items()}
    state = llama().state_dict()
    for short, name in tensors.items():
        values = state[f"{name}.weight"].numpy()
        if short.endswith(("attn_q", "attn_k")):  # the file's order of the entries of a head
            values = values.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH).swapaxes(1, 2).reshape(WIDTH, WIDTH)
        if values.ndim == 1:
            writer.add_tensor(f"{short}.weight", values)
        else:
            packed = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{short}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@pytest.mark.parametrize("by_path", [False, True])
def test_a_gguf_file_is_read_in_full_and_saved_without_its_quantisation(folder, tmp_path, by_path):
    file = "small-q8.gguf"
    named = (f"{folder}/{file}", {}) if by_path else (str(folder), {"gguf_file": file})
    model: Any = pretrained(named[0], "causal_lm", **named[1])
    assert model.name_or_path == f"{folder}/{file}"
    ids = torch.arange(3, 15).reshape(2, 6)
    with torch.no_grad():
        logits, expected = model(ids).logits, llama()(ids).logits
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
        model.save_pretrained(tmp_path)
        assert torch.equal(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, logits)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_the_tokenizer_is_in_the_file_too(folder):
    assert load("AutoTokenizer", f"{folder}/small-q8.gguf").eos_token == "</s>"


def test_a_missing_file_is_one_line_that_names_those_there(folder):
    with pytest.raises(ValueError, match=r"no GGUF file other\.gguf in .*; there: small-q8\.gguf"):
        pretrained(f"{folder}/other.gguf", "causal_lm")
    with pytest.raises(ValueError, match="gguf_file names another one, x; give one"):
        pretrained(f"{folder}/small-q8.gguf", "causal_lm", gguf_file="x")


def test_a_path_to_nothing_is_never_asked_of_the_hub():
    with pytest.raises(ValueError, match=r"no folder \./nowhere"):
        pretrained("./nowhere/model.gguf", "causal_lm")


def test_a_file_that_is_cut_off_is_one_line(folder, tmp_path):
    whole = (folder / "small-q8.gguf").read_bytes()
    for length in (64, 400, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.gguf") as refused:
            pretrained(str(tmp_path / "cut.gguf"), "causal_lm")
        assert "\n" not in str(refused.value)


def test_weights_that_are_still_quantised_are_refused(folder, monkeypatch):
    packed = llama()
    packed.config.quantization_config = {"quant_method": "bitsandbytes"}
    packed.lm_head.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: packed)
    with pytest.raises(ValueError, match=r"some/model is quantised: lm_head\.weight is of torch\.uint8; give"):
        pretrained("some/model", "causal_lm")
