"""Take heads out of an attention module: slices of its tensors, and the numbers that its forward pass reads."""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn

from simprune.attention import Attention, is_conv1d, open_up

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
WIDTHS = ("all_head_size", "split_size", "inner_dim", "attn_dim")


def remove_heads(model: nn.Module, attention: Attention, heads: Collection[int]) -> None:
    """Remove whole key/value groups of query heads from the model itself; `attention` describes it as it is.

    Raises ValueError for a group that would lose only some of its query heads, and for all heads.
    """
    groups = [group for group, unit in enumerate(attention.units) if set(unit) <= set(heads)]
    if sum(len(attention.units[group]) for group in groups) != len(set(heads)):
        shared = attention.heads // attention.groups
        raise ValueError(f"{attention.name}: every {shared} query heads share one key/value head and go together")
    if len(groups) == attention.groups:
        raise ValueError(f"{attention.name}: all {attention.heads} heads would go; keep at least one")
    gone: dict[tuple[str, int], list[int]] = {}
    for rows in (*attention.rows, attention.joint):
        gone.setdefault((rows.tensor, rows.dim), []).extend(i for g in groups for i in attention.entries(rows, g))
    for (tensor, dim), indices in gone.items():
        cut(model, tensor, dim, indices)
    module = model.get_submodule(attention.name)
    if isinstance(module, nn.MultiheadAttention):
        open_up(module)
    kept = attention.groups - len(groups)
    count = kept * (attention.heads // attention.groups)
    _update(module, COUNTS, attention.heads, count)
    _update(module, KEY_VALUE_COUNTS, attention.groups, kept)
    _update(module, WIDTHS, attention.heads * attention.width, count * attention.width)


def cut(model: nn.Module, tensor: str, dim: int, gone: Iterable[int]) -> None:
    """Remove entries of one parameter; the layer's stated sizes follow, and so does a gradient."""
    name, _, attribute = tensor.rpartition(".")
    owner, old = model.get_submodule(name), model.get_parameter(tensor)
    removed = set(gone)
    kept = torch.tensor([i for i in range(old.shape[dim]) if i not in removed], device=old.device)
    new = nn.Parameter(old.detach().index_select(dim, kept), requires_grad=old.requires_grad)
    if old.grad is not None:
        new.grad = old.grad.index_select(dim, kept)
    setattr(owner, attribute, new)
    if attribute == "weight" and isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = new.shape
    elif attribute == "weight" and is_conv1d(owner):
        owner.nx, owner.nf = new.shape  # type: ignore[assignment]


def _update(module: nn.Module, names: Sequence[str], old: int, new: int) -> None:
    for name in names:
        if vars(module).get(name) == old:
            setattr(module, name, new)
