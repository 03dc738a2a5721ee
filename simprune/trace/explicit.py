"""nn.MultiheadAttention computed step by step, so that hooks and counters see its parts and heads can be removed.

torch's own forward pass calls one function with the weights of all parts: its output projection never runs as a module,
and it insists on embed_dim / head_dim heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExplicitAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention that may have fewer heads than embed_dim / head_dim, and runs `out_proj` as a module.

    It has the same parameters and gives the same results. Nobody builds one: an existing module changes its class.
    Arguments and outputs are those of nn.MultiheadAttention; a mask per head, (N x heads, L, S), fits only as long as
    no head is removed.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is only a hint about attn_mask; give attn_mask as well")
        batched, same = query.ndim == 3, query is key and key is value
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        projected = self._project(query, key, value, same)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        mask = _joined(attn_mask, key_padding_mask, self.num_heads, q.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), weights if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, ...]:
        """Queries, keys and values (N, length, heads x width); `same`: all three arguments are one tensor."""
        bias, inputs = self.in_proj_bias, (query, key, value)
        if self.in_proj_weight is not None and same:
            return F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))


def _joined(mask: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Both masks as a single summand of the scores, of shape (N or 1, heads or 1, L or 1, S); None without masks."""
    parts = []
    if mask is not None:
        parts.append(_added(mask, dtype).unflatten(0, (-1, heads)) if mask.ndim == 3 else _added(mask, dtype))
    if padding is not None:
        parts.append(_added(padding, dtype)[:, None, None, :])
    return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as a summand of the scores: -inf where a boolean mask is true."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def make_explicit(module: nn.MultiheadAttention) -> None:
    """Turn an attention module into an `ExplicitAttention`, in place and for good: one with fewer heads needs it."""
    module.__class__ = ExplicitAttention
    module._qkv_same_embed_dim = False  # nn.TransformerEncoderLayer then leaves its fused path, which needs all heads
