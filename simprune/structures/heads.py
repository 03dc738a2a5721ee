"""Attention heads: query heads with the key/value head they share, in every tensor of one attention module."""

from collections.abc import Collection, Sequence

from torch import nn

from simprune.core.cost import Example
from simprune.core.registry import register
from simprune.core.structures import Coupling, NotPrunable, Slice, UnitGroup
from simprune.structures._structure import Refusals, UnitStructure
from simprune.structures.proof import prove
from simprune.trace.attention import HEAD_COUNTS, JOINT_WIDTHS, KEY_VALUE_COUNTS, Attention, attentions, make_explicit
from simprune.trace.cut import cut
from simprune.trace.network import Network


@register("structure", "heads")
class Heads(UnitStructure):
    """Heads of attention modules, named after the module; a unit is one key/value head with its query heads."""

    kind = "heads"

    def find(self, network: Network) -> tuple[list[UnitGroup], Refusals]:
        groups: list[UnitGroup] = []
        refused: Refusals = []
        for name, module in network.model.named_modules():
            attention = network.attentions.get(name)
            if attention is None:
                if _looks_like_attention(module):
                    refused.append((name, "it has heads, but how they lie in its tensors is not known"))
            elif name and name not in network.visits:
                refused.append((name, "it takes no part in the forward pass"))
            elif attention.groups < 2:
                refused.append((name, "it has a single key/value head"))
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
        known = entries.setdefault((rows.tensor, rows.dim, side), [()] * attention.groups)
        for group in range(attention.groups):
            known[group] += attention.entries(rows, group)
    slices = tuple(Slice(tensor, dim, tuple(indices), side) for (tensor, dim, side), indices in entries.items())
    return UnitGroup(attention.name, attention.groups, slices, "heads", attention.units)


def _looks_like_attention(module: nn.Module) -> bool:
    projects = any(isinstance(child, nn.Linear) for child in module.children())
    return projects and any(isinstance(getattr(module, name, None), int) for name in HEAD_COUNTS)


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
        make_explicit(module)
    kept = attention.groups - len(groups)
    count = kept * (attention.heads // attention.groups)
    _update(module, HEAD_COUNTS, attention.heads, count)
    _update(module, KEY_VALUE_COUNTS, attention.groups, kept)
    _update(module, JOINT_WIDTHS, attention.heads * attention.width, count * attention.width)


def _update(module: nn.Module, names: Sequence[str], old: int, new: int) -> None:
    for name in names:
        if vars(module).get(name) == old:
            setattr(module, name, new)
