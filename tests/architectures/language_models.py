"""Tiny random language models of the families that people run, by name."""

import pytest
import torch

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
HIDDEN = {"intermediate_size": 48}
SHARED = {"num_key_value_heads": 2}
OLD = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
SPECIAL = {"vocab_size": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SLIDING = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}

# Name -> class before "ForCausalLM" (or the class itself), and fields of its configuration.
FAMILIES = {
    "llama": ("Llama", SIZES | HIDDEN | SHARED),
    "gemma": ("Gemma", SIZES | HIDDEN | SHARED | {"head_dim": 8}),
    "gemma3": ("Gemma3", SIZES | HIDDEN | SHARED | SLIDING),
    "qwen3": ("Qwen3", SIZES | HIDDEN | SHARED | {"head_dim": 8}),
    "qwen2moe": ("Qwen2Moe", SIZES | HIDDEN | SHARED | MOE),
    "olmo2": ("Olmo2", SIZES | HIDDEN | SHARED),
    "cohere": ("Cohere", SIZES | HIDDEN | SHARED | {"use_qk_norm": True}),
    "phi": ("Phi", SIZES | HIDDEN),
    "phi3": ("Phi3", SIZES | HIDDEN | SHARED),
    "gptneox": ("GPTNeoX", SIZES | HIDDEN),
    "gptj": ("GPTJ", OLD | {"rotary_dim": 8}),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "falcon": ("Falcon", SIZES | {"multi_query": True}),
    "falcon_groups": ("Falcon", SIZES | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "mpt": ("Mpt", {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64}),
    "falcon_alibi": ("Falcon", SIZES | {"multi_query": False, "alibi": True}),
    "gptbigcode": ("GPTBigCode", OLD),
    "codegen": ("CodeGen", OLD | {"n_head": 8, "rotary_dim": 4}),
}
NAMES = tuple(FAMILIES)


def make(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A model with the same random weights each time; every tensor matters to its output."""
    transformers = pytest.importorskip("transformers")
    kind, fields = FAMILIES[name]
    config_class = {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config")
    model_class = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**SPECIAL, **fields)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = (parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return model


def batch(rows: int = 4, length: int = 10) -> dict[str, torch.Tensor]:
    """Tokens without padding."""
    tokens = torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(2))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
