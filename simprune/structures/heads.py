"""Attention heads: query heads with the key/value head they share, in every tensor of one attention module."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from simprune.attention import HEADS, Attention, attentions
from simprune.batches import eval_mode
from simprune.cost import Example
from simprune.structures.proof import UnitGroup, prove
from simprune.surgery.attention import remove_heads
from simprune.surgery.coupling import Slice


@dataclass(frozen=True)
class HeadGroup(UnitGroup):
    """The heads of one attention module, named after it; a unit is one key/value head with its query heads."""

    kind: Literal["channels", "heads"] = "heads"


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
