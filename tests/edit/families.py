"""Tiny random models of transformers, one per family: four layers in every stack, widths that differ from all else."""

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

WORDS = 64
TOKENS = {"vocab_size": WORDS, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
HIDDEN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES = {**HIDDEN, "intermediate_size": 48, "max_position_embeddings": 40}
GROUPED = {"num_key_value_heads": 2}
IMAGE = {**HIDDEN, "intermediate_size": 48, "image_size": 16, "patch_size": 4}
GPT = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 40}
SHARED = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
EXPERTS = {
    "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20,
}  # fmt: skip
# The class, the fields of its configuration, and the names of its stacks of layers.
CAUSAL = {
    "llama": ("Llama", "ForCausalLM", {**SIZES, **GROUPED}, "model.layers"),
    "mistral": ("Mistral", "ForCausalLM", {**SIZES, **GROUPED, "sliding_window": 6}, "model.layers"),
    "qwen2": (
        "Qwen2", "ForCausalLM",
        {**SIZES, **GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}, "model.layers",
    ),
    "qwen2_moe": ("Qwen2Moe", "ForCausalLM", {**SIZES, **GROUPED, **EXPERTS, "mlp_only_layers": [2]}, "model.layers"),
    "qwen3": ("Qwen3", "ForCausalLM", {**SIZES, **GROUPED, "head_dim": 10}, "model.layers"),
    "qwen3_moe": (
        "Qwen3Moe", "ForCausalLM", {**SIZES, **GROUPED, **EXPERTS, "head_dim": 10, "decoder_sparse_step": 2},
        "model.layers",
    ),
    "gemma": ("Gemma", "ForCausalLM", {**SIZES, **GROUPED, "head_dim": 10}, "model.layers"),
    "gemma2": ("Gemma2", "ForCausalLM", {**SIZES, **GROUPED, "head_dim": 10, "sliding_window": 5}, "model.layers"),
    "phi": ("Phi", "ForCausalLM", SIZES, "model.layers"),
    "phi3": ("Phi3", "ForCausalLM", {**SIZES, **GROUPED}, "model.layers"),
    "gpt2": ("GPT2", "LMHeadModel", GPT, "transformer.h"),
    "gptj": ("GPTJ", "ForCausalLM", {**GPT, "rotary_dim": 4}, "transformer.h"),
    "gpt_neo": (
        "GPTNeo", "ForCausalLM",
        {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 40, "window_size": 5,
         "attention_types": [[["global", "local"], 2]]},
        "transformer.h",
    ),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", SIZES, "gpt_neox.layers"),
    "opt": (
        "OPT", "ForCausalLM", {**HIDDEN, "ffn_dim": 48, "max_position_embeddings": 40, "word_embed_proj_dim": 32},
        "model.decoder.layers",
    ),
    "bloom": ("Bloom", "ForCausalLM", {"hidden_size": 32, "n_layer": 4, "n_head": 4}, "transformer.h"),
    "falcon": ("Falcon", "ForCausalLM", HIDDEN, "transformer.h"),
    "mixtral": ("Mixtral", "ForCausalLM", {**SIZES, **GROUPED, "num_local_experts": 3}, "model.layers"),
}  # fmt: skip
SEQUENCES = {
    "t5": (
        "T5", "ForConditionalGeneration",
        {"d_model": 32, "d_kv": 10, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4,
         "decoder_start_token_id": 0},
        ("encoder.block", "decoder.block"),
    ),
    "bart": (
        "Bart", "ForConditionalGeneration", {**SHARED, "max_position_embeddings": 40},
        ("model.encoder.layers", "model.decoder.layers"),
    ),
    "marian": (
        "Marian", "MTModel", {**SHARED, "max_position_embeddings": 40},
        ("model.encoder.layers", "model.decoder.layers"),
    ),
    "whisper": (
        "Whisper", "ForConditionalGeneration",
        {**SHARED, "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 40, "suppress_tokens": None,
         "begin_suppress_tokens": None},
        ("model.encoder.layers", "model.decoder.layers"),
    ),
}  # fmt: skip
ENCODERS = {
    "bert": ("Bert", "ForMaskedLM", SIZES, "bert.encoder.layer"),
    "roberta": ("Roberta", "ForMaskedLM", SIZES, "roberta.encoder.layer"),
    "distilbert": (
        "DistilBert", "ForMaskedLM",
        {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40},
        "distilbert.transformer.layer",
    ),
    "electra": ("Electra", "ForMaskedLM", {**SIZES, "embedding_size": 20}, "electra.encoder.layer"),
}  # fmt: skip
IMAGES = {
    "vit": ("ViT", "ForImageClassification", IMAGE, "vit.layers"),
    "dinov2": (
        "Dinov2", "ForImageClassification", {**HIDDEN, "mlp_ratio": 2, "image_size": 16, "patch_size": 4},
        "dinov2.encoder.layer",
    ),
}  # fmt: skip
DECODERS = {**CAUSAL, **SEQUENCES}  # that generate
STACKED = {**DECODERS, **ENCODERS, **IMAGES, "clip": ("", "", {}, ("text_model.encoder.layers",))}


def make(name: str, **fields: object) -> Any:
    """A model whose tensors all matter; `fields` of its configuration replace those above."""
    torch.manual_seed(0)
    if name == "clip":
        words = {**SIZES, "vocab_size": WORDS, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
        config = transformers.CLIPConfig(text_config=words, vision_config=IMAGE, projection_dim=24)
        model = transformers.CLIPModel(config)
    else:
        kind, head, sizes, _ = STACKED[name]
        words = {} if name in IMAGES else TOKENS
        config = getattr(transformers, f"{kind}Config")(**{**words, **sizes, **fields})
        model = getattr(transformers, kind + head.replace("ForCausalLM", "ForCausalLM"))(config)
    generator = torch.Generator().manual_seed(1)
    for tensor_name, parameter in model.named_parameters():
        if tensor_name not in (model._keys_to_ignore_on_save or ()):  # positions that are computed, as in Marian
            parameter.data += (0.15 if parameter.ndim > 1 else 0.1) * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def stacks(name: str) -> tuple[str, ...]:
    """Names of the lists of layers."""
    found = STACKED[name][3]
    return (found,) if isinstance(found, str) else found


def batch(name: str) -> dict[str, Tensor]:
    """Two inputs."""
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(3, WORDS, (2, 8), generator=generator)
    pixels = torch.randn(2, 3, 16, 16, generator=generator)
    if name in IMAGES:
        return {"pixel_values": pixels}
    if name == "clip":
        return {"input_ids": words, "pixel_values": pixels}
    if name == "whisper":
        return {"input_features": torch.randn(2, 8, 24, generator=generator), "decoder_input_ids": words}
    said = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    return said | ({"decoder_input_ids": words[:, :5]} if name in SEQUENCES else {})
