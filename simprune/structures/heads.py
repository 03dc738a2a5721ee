"""Attention heads: query heads with the key/value head they share, in every tensor of one attention module."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from simprune.core.cost import Example
from simprune.core.structures import HeadGroup, Slice, UnitGroup
from simprune.structures.proof import prove
from simprune.trace.attention import HEADS, Attention, attentions, open_up
from simprune.trace.context import eval_mode
from simprune.trace.cut import cut


def find_head_groups(model: nn.Module, example: Example) -> tuple[list[HeadGroup], list[tuple[str, str]]]:
    """The heads of all attention modules that can be removed safely, and the modules that cannot, with the reason.

    Every group is proven on a copy, see `simprune.structures.proof`.
    """
    found = attentions(model)
    running = _running(model, example)
    groups: list[HeadGroup] = []
    refused: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        if name in found and name not in running:
            refused.append((name, "it takes no part in the forward pass"))
        elif name in found and found[name].groups < 2:
            refused.append((name, "it has a single key/value head"))
        elif name in found:
            groups.append(head_group(found[name]))
        elif _looks_like_attention(module):
            refused.append((name, "it has heads, but how they lie in its tensors is not known"))

    def remove(copied: nn.Module, some: Sequence[UnitGroup]) -> None:
        layouts = attentions(copied)
        for group in some:
            remove_heads(copied, layouts[group.name], group.expand([group.size // 2]))

    proven, unproven = prove(model, example, groups, remove)
    return proven, refused + unproven


def head_group(attention: Attention) -> HeadGroup:
    """The heads of one attention module as a group of units."""
    entries: dict[tuple[str, int, str], list[tuple[int, ...]]] = {}
    for rows, side in [*((rows, "out") for rows in attention.rows), (attention.joint, "in")]:
        known = entries.setdefault((rows.tensor, rows.dim, side), [()] * attention.groups)
        for group in range(attention.groups):
            known[group] += attention.entries(rows, group)
    slices = tuple(Slice(tensor, dim, tuple(indices), side) for (tensor, dim, side), indices in entries.items())
    return HeadGroup(attention.name, attention.groups, slices, units=attention.units)


def _looks_like_attention(module: nn.Module) -> bool:
    projects = any(isinstance(child, nn.Linear) for child in module.children())
    return projects and any(isinstance(getattr(module, name, None), int) for name in HEADS)


def _running(model: nn.Module, example: Example) -> set[str]:
    """Names of the modules that run in one forward pass."""
    names: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: names.add(name))
        for name, module in model.named_modules()
    ]
    try:
        args, kwargs = example
        with eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return names


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


def _update(module: nn.Module, names: Sequence[str], old: int, new: int) -> None:
    for name in names:
        if vars(module).get(name) == old:
            setattr(module, name, new)
