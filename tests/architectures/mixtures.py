"""Tiny random networks with mixtures of experts: families of transformers, and experts in plain lists."""

from typing import Any

import torch
from torch import nn

from tests.architectures import language_models

SIZES = language_models.SIZES | language_models.HIDDEN | language_models.SHARED | {"num_hidden_layers": 2}
# Name -> class before "ForCausalLM", and fields of its configuration: six experts, of which two are selected.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", SIZES | {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "qwen2moe": (
        "Qwen2Moe",
        SIZES
        | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 24},
    ),
    "qwen3moe": (
        "Qwen3Moe",
        SIZES | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    ),
    "olmoe": ("Olmoe", SIZES | {"num_experts": 6, "num_experts_per_tok": 2}),
    "deepseek": (
        "DeepseekV3",
        SIZES
        | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4}
        | {"qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 6, "num_experts_per_tok": 2}
        | {"n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 0},
    ),
    "gptoss": (
        "GptOss",
        SIZES
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}
        | {"layer_types": ["full_attention"] * 2},
    ),
    "phimoe": ("Phimoe", SIZES | {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "granitemoe": ("GraniteMoe", SIZES | {"num_local_experts": 6, "num_experts_per_tok": 2}),
}
PLAIN = ("listed", "dense")  # experts in a list: two of six selected; all of them run, with weights
NAMES = (*FAMILIES, *PLAIN)


class Listed(nn.Module):
    """A mixture of experts in a list; each runs for the tokens that select it, or all run for all."""

    def __init__(self, dense: bool):
        super().__init__()
        self.top_k, self.dense = 2, dense
        self.gate = nn.Linear(16, 6)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16)) for _ in range(6))

    def forward(self, x):
        scores = self.gate(x).softmax(-1)
        values, indices = scores.topk(self.top_k, -1)
        weights = torch.zeros_like(scores).scatter(-1, indices, values)
        weights = weights / weights.sum(-1, keepdim=True)
        if self.dense:
            return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
        output = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            at = weights[..., number] > 0
            if at.any():
                output[at] = output[at] + weights[at][:, number, None] * expert(x[at])
        return output


class Plain(nn.Module):
    """Two residual layers with mixtures in lists, behind an embedding."""

    def __init__(self, dense: bool):
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 24)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.mixtures = nn.ModuleList(Listed(dense) for _ in range(2))

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for norm, mixture in zip(self.norms, self.mixtures, strict=True):
            x = x + mixture(norm(x))
        return self.head(x)


def make(name: str, **fields: Any) -> Any:
    """A model with the same random weights each time, in which every tensor matters."""
    torch.manual_seed(0)
    if name in PLAIN:
        return Plain(dense=name == "dense").eval()
    transformers = language_models.pytest.importorskip("transformers")
    kind, sizes = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(**language_models.SPECIAL, **sizes | fields)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def batch(rows: int = 4, length: int = 10) -> dict[str, torch.Tensor]:
    return language_models.batch(rows, length)
