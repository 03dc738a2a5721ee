"""Groups that have to keep the same width, such as the MLPs of all layers, as one group: for loaders of equal layers.

A configuration of transformers states one width for all layers. A unit of the one group stands for a few units of every
layer: those whose turn it is there. So every planner chooses as before, and all layers lose as many.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simprune.core.plain import short
from simprune.core.plan import Edit
from simprune.core.redundancy import ChannelRedundancy, Interactions, Redundancy
from simprune.core.structures import Slice, UnitGroup

LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # the number of a layer in the name of a module


@dataclass(frozen=True)
class Alike:
    """Groups of several layers that lose equally many units.

    Args:
        entry: the one group that stands for them.
        members: the groups, in order of execution.
        turns: for every unit of the one group and every member, the units that go.
    """

    entry: ChannelRedundancy
    members: tuple[ChannelRedundancy, ...]
    turns: tuple[tuple[tuple[int, ...], ...], ...]

    def edits(self, units: Sequence[int], reason: str, outside: Sequence[str]) -> list[Edit]:
        """The edits of the members by which some units go.

        Args:
            units: of the one group.
            reason: for the reader.
            outside: blocks that are removed whole, in which nothing is edited.
        """
        edits = []
        for number, member in enumerate(self.members):
            if any(f"{member.name}.".startswith(f"{block}.") for block in outside):
                continue
            gone = [unit for turn in units for unit in self.turns[turn][number]]
            why = f"{member.why(gone)}; {len(gone)} of {member.group.size} go, {reason}"
            damage = short(sum(member.damage[unit] for unit in gone))
            group = member.group
            edits.append(Edit(group.kind, member.name, group.expand(gone), group.width, why, damage=damage))
        return edits


def roles(entries: Sequence[ChannelRedundancy]) -> list[list[ChannelRedundancy]]:
    """Groups that differ in nothing but the number of their layer."""
    by_role: dict[tuple, list[ChannelRedundancy]] = {}
    for entry in entries:
        group = entry.group
        by_role.setdefault((group.kind, pattern(entry.name), group.size, group.width, group.least), []).append(entry)
    return [*by_role.values()]


def pattern(name: str) -> str:
    """A name with `*` in place of the numbers of layers.

    >>> pattern("model.layers.11.mlp.up_proj")
    'model.layers.*.mlp.up_proj'
    """
    return LAYER.sub("*", name)


def united(redundancy: Redundancy, sets: Sequence[tuple[Sequence[ChannelRedundancy], int]]) -> tuple[Redundancy, dict]:
    """The redundancy in which one group stands for several.

    Args:
        redundancy: of the original's structures.
        sets: groups that lose equally many units, and how many at once. All other groups stay whole.

    Returns:
        The redundancy, and what its groups stand for, by name.
    """
    alike = [_alike(members, step, redundancy.interactions) for members, step in sets]
    known = redundancy.interactions
    interactions = None if known is None else _joined(known, alike, [entry.name for entry in redundancy.blocks])
    channels = tuple(each.entry for each in alike)
    together = replace(redundancy, channels=channels, interactions=interactions)
    return together, {each.entry.name: each for each in alike}


def _alike(members: Sequence[ChannelRedundancy], step: int, known: Interactions | None) -> Alike:
    first = members[0]
    size = first.group.size
    free = (size - first.group.least) // step * step
    starts = [*range(0, free, step)]
    ends = [start + step for start in starts]
    stays = [*range(free, size)]  # of every order; they go never, each a unit of its own
    spans = [*zip(starts, ends, strict=True), *((unit, unit + 1) for unit in stays)]
    turns = tuple(tuple(tuple(member.order[start:end]) for member in members) for start, end in spans)
    slices = tuple(
        Slice(part.tensor, part.dim, _taken(part.indices, number, turns), part.side, _taken(part.inputs, number, turns))
        for number, member in enumerate(members)
        for part in member.group.slices
    )
    units = tuple(tuple(first.group.expand(turn[0])) for turn in turns)
    name = pattern(first.name) if len(members) > 1 else first.name
    group = UnitGroup(name, len(turns), slices, first.group.kind, units, max(len(stays), 1))
    lost = np.array([[sum(member.damage[u] for u in turn[m]) for m, member in enumerate(members)] for turn in turns])
    weights = np.eye(len(members)) if known is None else known.among([_key(member) for member in members])
    lengths = np.sqrt(np.cumsum(lost, 0))  # (units, members), of the changes after every turn
    whole = ((lengths @ weights) * lengths).sum(1)
    entry = ChannelRedundancy(
        group,
        redundancy=tuple(
            min(member.redundancy[u] for m, member in enumerate(members) for u in turn[m]) for turn in turns
        ),
        order=tuple(range(len(turns))),
        damage=tuple(np.diff(whole, prepend=0.0).clip(0).tolist()),
        nearest=tuple((unit + 1) % len(turns) for unit in range(len(turns))),
        share=sum(member.share for member in members),
        score=first.score,
        wording=first.wording,
    )
    return Alike(entry, tuple(members), turns)


def _taken(entries: Sequence[Sequence[int]], member: int, turns: Sequence[Sequence[Sequence[int]]]) -> tuple:
    """The entries that a tensor of one member loses at every turn."""
    return tuple(tuple(entry for unit in turn[member] for entry in entries[unit]) for turn in turns) if entries else ()


def _key(entry: ChannelRedundancy) -> tuple[str, str]:
    return entry.group.kind, entry.name


def _joined(known: Interactions, alike: Sequence[Alike], blocks: Sequence[str]) -> Interactions:
    """The interactions of the groups that stand for others: cosines of the summed changes of the output."""
    keys = [("block", name) for name in blocks]
    keys += [_key(member) for each in alike for member in each.members]
    values = known.among(keys)
    sums = np.zeros((len(blocks) + len(alike), len(keys)))
    sums[: len(blocks), : len(blocks)] = np.eye(len(blocks))
    column = len(blocks)
    for row, each in enumerate(alike, len(blocks)):
        for member in each.members:
            sums[row, column] = sum(member.damage) ** 0.5
            column += 1
    products = sums @ values @ sums.T
    scale = np.sqrt(products.diagonal()).clip(1e-150)
    rows = [*keys[: len(blocks)], *(_key(each.entry) for each in alike)]
    cosines = (products / np.outer(scale, scale)).clip(0, 1)
    np.fill_diagonal(cosines, 1)
    return Interactions({key: row for row, key in enumerate(rows)}, cosines)
