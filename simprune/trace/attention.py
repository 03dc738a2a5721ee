"""Attention modules: which there are, how their heads lie in their tensors, and nn.MultiheadAttention in the open."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"), ("to_q", "to_k", "to_v"))
FUSED = ("qkv", "qkv_proj", "in_proj", "c_attn")
OUTPUT = ("o_proj", "out_proj", "c_proj", "proj", "o", "to_out")
PER_HEAD_NORMS = ("q_norm", "k_norm")  # these work within a head, so they stay when another head goes
# Names under which modules and configurations state numbers of heads and widths: a new spelling goes here alone.
HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
HEAD_WIDTHS = ("head_dim", "attention_head_size", "dim_head")
JOINT_WIDTHS = ("all_head_size", "split_size", "inner_dim", "attn_dim")  # of all heads together


@dataclass(frozen=True)
class HeadRows:
    """Where `heads` heads lie in one tensor: one after the other along `dim`, from entry `start` on."""

    tensor: str
    dim: int
    heads: int
    start: int = 0


@dataclass(frozen=True)
class Attention:
    """One self-attention module; every key/value head serves `heads / groups` query heads in a row.

    `reads` and `writes` are the tensors, with the dimension, that meet the stream the module stands in; `rows` holds
    the heads where they are made and `joint` where the output projection reads them.
    """

    name: str
    heads: int
    groups: int
    width: int  # of one head
    rows: tuple[HeadRows, ...]
    joint: HeadRows
    reads: tuple[tuple[str, int], ...]
    writes: tuple[tuple[str, int], ...]

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Heads that can only go together: the query heads of one key/value head."""
        shared = self.heads // self.groups
        return tuple(tuple(range(group * shared, (group + 1) * shared)) for group in range(self.groups))

    def entries(self, rows: HeadRows, group: int) -> tuple[int, ...]:
        """Entries along `rows.dim` that belong to one key/value head and its query heads."""
        each = rows.heads // self.groups * self.width
        return tuple(range(rows.start + group * each, rows.start + (group + 1) * each))

    @property
    def layers(self) -> frozenset[str]:
        """Names of the projections."""
        tensors = [rows.tensor for rows in self.rows] + [self.joint.tensor]
        return frozenset(tensor.rpartition(".")[0] for tensor in tensors)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a linear layer whose weight is stored as (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def attentions(model: nn.Module) -> dict[str, Attention]:
    """Every self-attention module whose layout is known, by name.

    Known by their parts: nn.MultiheadAttention, and modules that hold nothing but separate (`q_proj`, `k_proj`,
    `v_proj`; also `query`.. and `q`..) or fused (`qkv`, `c_attn`) projections and an output projection. Whether the
    layout is right is for the finder to prove.
    """
    found = {}
    for name, module in model.named_modules():
        known = _multihead(name, module) if isinstance(module, nn.MultiheadAttention) else _by_parts(model, name)
        if known is not None:
            found[name] = known
    return found


def _multihead(name: str, module: nn.MultiheadAttention) -> Attention | None:
    if module.bias_k is not None or module.add_zero_attn:
        return None
    prefix = f"{name}." if name else ""
    heads, width = module.num_heads, module.head_dim
    names = ["in_proj_weight"] if module.in_proj_weight is not None else [f"{x}_proj_weight" for x in "qkv"]
    starts = [0, heads * width, 2 * heads * width]
    if len(names) == 1:
        rows = [HeadRows(prefix + names[0], 0, heads, start) for start in starts]
    else:
        rows = [HeadRows(prefix + tensor, 0, heads) for tensor in names]
    if module.in_proj_bias is not None:
        rows += [HeadRows(f"{prefix}in_proj_bias", 0, heads, start) for start in starts]
    out = f"{prefix}out_proj"
    writes = [(f"{out}.weight", 0)] + ([(f"{out}.bias", 0)] if module.out_proj.bias is not None else [])
    reads = tuple((prefix + tensor, 1) for tensor in names)
    return Attention(name, heads, heads, width, tuple(rows), HeadRows(f"{out}.weight", 1, heads), reads, tuple(writes))


def _by_parts(model: nn.Module, name: str) -> Attention | None:
    module = model.get_submodule(name)
    children = dict(module.named_children())
    split = next((names for names in SEPARATE if all(_is_projection(children.get(n)) for n in names)), None)
    fused = next((n for n in FUSED if _is_projection(children.get(n))), None)
    projections = split or ((fused,) if fused else None)
    if projections is None:
        return None
    output = next((n for n in OUTPUT if _is_projection(children.get(n))), None)
    own = {*projections, output, *PER_HEAD_NORMS}
    if any(child not in own and next(part.parameters(), None) is not None for child, part in children.items()):
        return None
    if next(module.parameters(recurse=False), None) is not None:
        return None
    prefix, parent = f"{name}." if name else "", name.rpartition(".")[0]
    if output is not None:
        out = prefix + output
    elif parent and _is_projection(_submodule(model, f"{parent}.output.dense")):
        out = f"{parent}.output.dense"  # BERT: the projection lies beside the attention
    else:
        return None
    sizes = [_sizes(children[n])[1] for n in projections]
    joint = _sizes(model.get_submodule(out))[0]
    width = next((value for n in HEAD_WIDTHS if isinstance(value := getattr(module, n, None), int)), None)
    count = next((value for n in HEAD_COUNTS if isinstance(value := getattr(module, n, None), int)), None)
    width = width or (joint // count if count else None)
    if not width or joint % width:
        return None
    heads = joint // width
    if split is None:
        groups = (sizes[0] - joint) // 2 // width
        starts = [0, joint, joint + groups * width]
        layers = [(projections[0], start, n) for start, n in zip(starts, (heads, groups, groups), strict=True)]
    else:
        groups = sizes[1] // width
        layers = [(n, 0, heads if n == projections[0] else groups) for n in projections]
    if not groups or heads % groups or sum(sizes) != (heads + 2 * groups) * width:
        return None
    rows, reads = [], []
    for layer, start, count in layers:
        for tensor, dim in _outputs(children[layer]):
            rows.append(HeadRows(f"{prefix}{layer}.{tensor}", dim, count, start))
        reads.append((f"{prefix}{layer}.weight", 0 if is_conv1d(children[layer]) else 1))
    output_layer = model.get_submodule(out)
    return Attention(
        name,
        heads,
        groups,
        width,
        tuple(rows),
        HeadRows(f"{out}.weight", 0 if is_conv1d(output_layer) else 1, heads),
        tuple(dict.fromkeys(reads)),
        tuple((f"{out}.{tensor}", dim) for tensor, dim in _outputs(output_layer)) if output is not None else (),
    )


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _is_projection(module: nn.Module | None) -> bool:
    return module is not None and (isinstance(module, nn.Linear) or is_conv1d(module))


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a projection."""
    shape = layer.get_parameter("weight").shape
    return (shape[0], shape[1]) if is_conv1d(layer) else (shape[1], shape[0])


def _outputs(layer: nn.Module) -> list[tuple[str, int]]:
    """Tensors of a projection with one entry per output, and the dimension they lie along."""
    return [("weight", 1 if is_conv1d(layer) else 0)] + ([("bias", 0)] if layer.bias is not None else [])


class ExplicitAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention that may have fewer heads than embed_dim / head_dim, and runs `out_proj` as a module.

    Same parameters and same results; never built, an existing module changes its class. Takes and returns what
    nn.MultiheadAttention does; masks per head, of shape (N x heads, L, S), only before heads are removed.
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
        batched, one = query.ndim == 3, query is key and key is value
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in self._project(query, key, value, one))
        mask = _joined(attn_mask, key_padding_mask, self.num_heads, q.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), weights if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor, one: bool) -> tuple[Tensor, ...]:
        bias, inputs = self.in_proj_bias, (query, key, value)
        if self.in_proj_weight is not None and one:
            return F.linear(query, self.in_proj_weight, bias).chunk(3, -1)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))


def _joined(mask: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Both masks as one to add to the scores, of shape (N or 1, heads or 1, L or 1, S)."""
    parts = []
    if mask is not None:
        parts.append(_added(mask, dtype).unflatten(0, (-1, heads)) if mask.ndim == 3 else _added(mask, dtype))
    if padding is not None:
        parts.append(_added(padding, dtype)[:, None, None, :])
    return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def make_explicit(module: nn.MultiheadAttention) -> None:
    """Let one attention module run in the open from now on: what a module with fewer heads needs."""
    module.__class__ = ExplicitAttention
    module._qkv_same_embed_dim = False  # nn.TransformerEncoderLayer then leaves its fused path, which needs all heads


@contextmanager
def explicit_attention(*models: nn.Module) -> Iterator[None]:
    """For a while every nn.MultiheadAttention shows its parts to hooks and counters."""
    closed = [
        m for model in models for m in model.modules() if type(m) is nn.MultiheadAttention and not m.add_zero_attn
    ]
    closed = [module for module in closed if module.bias_k is None]
    for module in closed:
        module.__class__ = ExplicitAttention
    try:
        yield
    finally:
        for module in closed:
            module.__class__ = nn.MultiheadAttention
