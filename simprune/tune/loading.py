"""What a stock loader can open: which groups must keep equal widths, and of which multiples, for `from_pretrained`.

A configuration is looked for on the meta device, where no weight is stored: the tensors get the shapes that a removal
would leave, and a model built from the configuration has to have the same ones.
"""

import copy
import re
from collections.abc import Sequence

import torch
from torch import nn

from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Redundancy
from simprune.core.structures import NotPrunable
from simprune.edit.configuration import proposals, without_weights
from simprune.edit.reopening import differing, is_pretrained
from simprune.planners.alike import pattern, roles
from simprune.structures import unit_structures
from simprune.trace.cut import cut
from simprune.trace.network import Network

STEPS = (1, 8, 64)  # units that go at once; the first number is taken whose shapes a configuration can state
IN_A_LIST = re.compile(r"\.\d+$")


def loadable(redundancy: Redundancy, network: Network) -> list[tuple[list[ChannelRedundancy], int]]:
    """Groups that a configuration can state when all of them lose equally many units, and how many at once.

    Groups of all layers are tried together, then, where one field states them, with those that have the same size in
    other places, such as encoder and decoder.

    Args:
        redundancy: of the structures of a transformers model.
        network: the model.

    Raises:
        ValueError: for a model that is not of transformers.
    """
    if not is_pretrained(network.model):
        kind = type(network.model).__name__
        raise ValueError(f"planner.loader transformers: expected a model of transformers; got a {kind}")
    sets, left = [], []
    for members in roles(redundancy.channels):
        step = _step(members, network)
        (sets if step else left).append((members, step))
    wider: dict[tuple, list[ChannelRedundancy]] = {}
    for members, _ in left:
        group = members[0].group
        wider.setdefault((group.kind, group.size, group.width), []).extend(members)
    alone = {id(members[0]) for members, _ in left}
    for members in wider.values():
        several = id(members[0]) in alone and len({pattern(member.name) for member in members}) > 1
        if several and (step := _step(members, network)):
            sets.append((members, step))
    return sets


def whole_layers(blocks: Sequence[BlockRedundancy]) -> tuple[BlockRedundancy, ...]:
    """Blocks whose removal a configuration can state: layers in a list, and no parts of them, that nothing replaces."""
    return tuple(
        entry
        for entry in blocks
        if entry.block.replace == "identity" and not entry.block.inside and IN_A_LIST.search(entry.name)
    )


def _step(members: Sequence[ChannelRedundancy], network: Network) -> int:
    """The least number of units that all members can lose at once, or 0."""
    most = members[0].group.size - members[0].group.least
    return next((step for step in STEPS if step <= most and _opens(members, step, network)), 0)


def _opens(members: Sequence[ChannelRedundancy], count: int, network: Network) -> bool:
    """Whether a configuration states the shapes that are left when every member loses some units."""
    small = _on_meta(network.model)
    for member in members:
        group, units = member.group, member.order[:count]
        try:
            if group.kind in ("heads", "experts"):
                unit_structures()[group.kind].remove(small, ((), {}), [((member.name,), group.expand(units))])
                continue
        except (NotPrunable, ValueError):
            return False
        for (tensor, dim), lost in group.cut(units).items():
            cut(small, tensor, dim, range(lost))
    for config in proposals(small, network.model.config):
        other = without_weights(small, config)
        scales = [] if other is None else [key for _, key, here, _ in differing(small, other) if type(here) is float]
        if not scales:  # a scale of the earlier width would be another one in the model that opens
            return True
    return False


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without weights."""
    tensors = [*model.parameters(), *model.buffers()]
    empty = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    held = {id(p): nn.Parameter(empty[id(p)], requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty | held)
