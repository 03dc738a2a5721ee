"""Attention heads: query heads with the key/value head they share, in every tensor of one attention module."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from simprune.core.cost import Example
from simprune.core.registry import register
from simprune.core.structures import Coupling, NotPrunable, Slice, UnitGroup
from simprune.structures import Refusals, UnitStructure
from simprune.structures.proof import prove
from simprune.trace.attention import (
    FUSED_WIDTHS,
    HEAD_COUNTS,
    HEAD_WIDTHS,
    JOINT_WIDTHS,
    KEY_VALUE_COUNTS,
    Attention,
    attentions,
)
from simprune.trace.cut import cut
from simprune.trace.explicit import make_explicit
from simprune.trace.head_biases import pick_biases
from simprune.trace.network import Network

ADAPTED = "its projections carry adapters, such as LoRA; merge them first: model = model.merge_and_unload()"


@register("structure", "heads")
class Heads(UnitStructure):
    """Heads of attention modules; a unit is one key/value head with the query heads that share it.

    A group is named after its attention module. A forward pass on a copy proves the removals.
    """

    kind = "heads"
    absent = "no module is attention: none projects queries, keys and values to heads"

    def find(self, network: Network) -> tuple[list[UnitGroup], Refusals]:
        groups: list[UnitGroup] = []
        refused: Refusals = []
        for name, module in network.model.named_modules():
            attention = network.attentions.get(name)
            if attention is None:
                if _is_adapted(module):
                    refused.append((name, ADAPTED))
                elif _looks_like_attention(module):
                    refused.append((name, "it has heads, but how they lie in its tensors is not known"))
            elif name and name not in network.visits:
                refused.append((name, "it takes no part in the forward pass"))
            elif attention.groups < 2:
                refused.append((name, "it has a single head"))
            else:
                groups.append(head_group(attention))
        proven, unproven = prove(network, groups, self)
        return proven, refused + unproven

    def coupling(self, network: Network, name: str) -> Coupling:
        if name not in network.attentions:
            raise NotPrunable("it has no heads that can be removed")
        group = head_group(network.attentions[name])
        return Coupling(group.units, group.slices)

    def remove(self, small: nn.Module, example: Example, edits: Sequence[tuple[Sequence[str], Sequence[int]]]) -> None:
        layouts = attentions(small)
        for names, indices in edits:
            remove_heads(small, layouts[names[0]], indices)


def head_group(attention: Attention) -> UnitGroup:
    """The heads of one attention module as a group of units."""
    entries: dict[tuple[str, int, str], list[tuple[int, ...]]] = {}
    for rows, side in [*((rows, "out") for rows in attention.rows), (attention.joint, "in")]:
        by_group = entries.setdefault((rows.tensor, rows.dim, side), [()] * attention.groups)
        for group in range(attention.groups):
            by_group[group] += attention.entries(rows, group)
    slices = tuple(Slice(tensor, dim, tuple(indices), side) for (tensor, dim, side), indices in entries.items())
    return UnitGroup(attention.name, attention.groups, slices, "heads", attention.units)


def _looks_like_attention(module: nn.Module) -> bool:
    projects = any(isinstance(child, nn.Linear) for child in module.children())
    return projects and any(isinstance(getattr(module, name, None), int) for name in HEAD_COUNTS)


def _is_adapted(module: nn.Module) -> bool:
    """Whether a projection of an attention module is wrapped, as by the package peft, which adds to its output."""
    return any(isinstance(getattr(child, "base_layer", None), nn.Module) for child in module.children()) and any(
        isinstance(getattr(module, name, None), int) for name in (*HEAD_COUNTS, *HEAD_WIDTHS)
    )


def remove_heads(model: nn.Module, attention: Attention, heads: Collection[int]) -> None:
    """Remove heads from an attention module in place.

    Args:
        model: that contains the module.
        attention: layout of the module as it is now.
        heads: numbers of query heads; all that share a key/value head have to be among them, or none.

    Raises:
        ValueError: when a key/value head would lose only some of its query heads, and when no head would remain.
    """
    groups = [group for group, unit in enumerate(attention.units) if set(unit) <= set(heads)]
    if sum(len(attention.units[group]) for group in groups) != len(set(heads)):
        shared = attention.heads // attention.groups
        raise ValueError(f"{attention.name}: every {shared} query heads share one key/value head and go together")
    if len(groups) == attention.groups:
        raise ValueError(f"{attention.name}: all {attention.heads} heads would go; keep at least one")
    for part in head_group(attention).slices:
        cut(model, part.tensor, part.dim, [entry for group in groups for entry in part.indices[group]])
    module = model.get_submodule(attention.name)
    if isinstance(module, nn.MultiheadAttention):
        make_explicit(module)
    pick_biases(module, attention.heads, set(heads))
    remaining = attention.groups - len(groups)
    count = remaining * (attention.heads // attention.groups)
    for names, old, new in (
        (HEAD_COUNTS, attention.heads, count),
        (KEY_VALUE_COUNTS, attention.key_values, attention.key_values if attention.shared else remaining),
        (JOINT_WIDTHS + FUSED_WIDTHS * attention.shared, attention.heads * attention.width, count * attention.width),
    ):
        for name in names:
            if vars(module).get(name) == old:
                setattr(module, name, new)
    config = getattr(module, "config", None)
    if config is not None and any(getattr(config, name, None) == attention.heads for name in HEAD_COUNTS):
        key_values = attention.key_values if attention.shared else remaining
        counts = ((HEAD_COUNTS, attention.heads, count), (KEY_VALUE_COUNTS, attention.key_values, key_values))
        own = {name: new for names, old, new in counts for name in names if getattr(config, name, None) == old}
        vars(module)["config"] = OwnHeads(config, own)


class OwnHeads:
    """A configuration as one attention module sees it: that of the model, with the module's own numbers of heads.

    Some attention modules read these numbers from a configuration that they share with layers which keep their heads.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(num_heads=4, use_cache=True)
    >>> own = OwnHeads(config, {"num_heads": 3})
    >>> own.use_cache = False
    >>> own.num_heads, config
    (3, namespace(num_heads=4, use_cache=False))
    """

    def __init__(self, shared: Any, own: Mapping[str, int]) -> None:
        vars(self).update(own, _shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_shared":  # asked for by copy and pickle before there is a state
            raise AttributeError(name)
        return getattr(self._shared, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._shared, name, value)
