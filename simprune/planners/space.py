"""All that may be chosen, and what any selection costs and damages: exactly, and many selections at once."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from simprune.core.cost import KINDS, Cost
from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Redundancy
from simprune.planners.constraints import Constraints

Floats = NDArray[np.float64]
ROWS = 512  # selections evaluated at once, which bounds the memory


@dataclass(frozen=True)
class Menu:
    """One group: the order in which its units go, the allowed numbers of units gone, and the damage of each number."""

    entry: ChannelRedundancy
    order: tuple[int, ...]
    counts: tuple[int, ...]
    damage: Floats

    @classmethod
    def of(cls, entry: ChannelRedundancy, constraints: Constraints, order: Sequence[int] | None = None) -> "Menu":
        """Units go in the entry's order unless another is given.

        `damage` of a unit is what is lost at its turn in the entry's order; units out of turn lose at least as much as
        the same number of units in it.
        """
        own = tuple(entry.order if order is None else order)
        counts = constraints.counts(entry.group, own)
        lost, least = (np.cumsum([0.0, *(entry.damage[unit] for unit in units)]) for units in (own, entry.order))
        return cls(entry, own, tuple(counts), np.maximum(lost, least)[counts])

    def only(self, levels: Sequence[int] | NDArray[np.intp]) -> "Menu":
        """Some of the levels."""
        return replace(self, counts=tuple(self.counts[level] for level in levels), damage=self.damage[list(levels)])

    def gone(self, level: int) -> tuple[int, ...]:
        """The units that go at a level, an index of `counts`."""
        return self.order[: self.counts[level]]


@dataclass(frozen=True)
class Selection:
    """For every group the level of its menu, and for every block whether it goes."""

    levels: NDArray[np.intp]
    blocks: NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """One more level of a group, or a block: `item` counts the groups, then the blocks."""

    item: int
    level: int = 0


@dataclass(frozen=True)
class Space:
    """Groups with their menus, blocks, and their cost; `extra` are costs that add up over structures, by kind."""

    redundancy: Redundancy
    menus: tuple[Menu, ...]
    blocks: tuple[BlockRedundancy, ...]
    extra: Mapping[str, "Additive"]

    @classmethod
    def of(cls, redundancy: Redundancy, constraints: Constraints) -> "Space":
        """What the constraints leave; groups that cannot lose anything are left out."""
        constraints.check(redundancy)
        menus = (Menu.of(entry, constraints) for entry in constraints.groups(redundancy))
        kept = tuple(menu for menu in menus if len(menu.counts) > 1)
        return cls(redundancy, kept, constraints.blocks(redundancy), {})

    def ordered(self, orders: Mapping[str, Sequence[int]], constraints: Constraints) -> "Space":
        """The same space with other orders inside groups, by name; levels that an order does not allow are left out."""
        menus = [Menu.of(menu.entry, constraints, orders[menu.entry.name]) for menu in self.menus]
        both = [set(old.counts) & set(new.counts) for old, new in zip(self.menus, menus, strict=True)]
        found = self.only([_places(old.counts, shared) for old, shared in zip(self.menus, both, strict=True)])
        kept = (new.only(_places(new.counts, shared)) for new, shared in zip(menus, both, strict=True))
        return replace(found, menus=tuple(kept))

    def only(self, levels: Sequence[Sequence[int] | NDArray[np.intp]]) -> "Space":
        """The same space with some of the levels of every group."""
        menus = tuple(menu.only(some) for menu, some in zip(self.menus, levels, strict=True))
        return replace(self, menus=menus, extra={kind: each.only(levels) for kind, each in self.extra.items()})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cost, in the order of the columns of `costs`."""
        return (*KINDS, *self.extra)

    @property
    def nothing(self) -> Selection:
        """Keep all."""
        return Selection(np.zeros(len(self.menus), np.intp), np.zeros(len(self.blocks), bool))

    def chosen(self, steps: Sequence[Step]) -> Selection:
        """The selection that a sequence of steps leads to."""
        selection = self.nothing
        for step in steps:
            if step.item < len(self.menus):
                selection.levels[step.item] = max(selection.levels[step.item], step.level)
            else:
                selection.blocks[step.item - len(self.menus)] = True
        return selection

    def along(self, steps: Sequence[Step]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """(levels, blocks) after 0, 1, ... all of the steps, one row each."""
        levels = np.zeros((len(steps) + 1, len(self.menus)), np.intp)
        blocks = np.zeros((len(steps) + 1, len(self.blocks)), bool)
        for row, step in enumerate(steps, 1):
            if step.item < len(self.menus):
                levels[row, step.item] = step.level
            else:
                blocks[row, step.item - len(self.menus)] = True
        return np.maximum.accumulate(levels, 0), np.logical_or.accumulate(blocks, 0)

    def cost(self, selection: Selection) -> Floats:
        """Cost of one selection, one number per kind."""
        return self.costs(selection.levels[None], selection.blocks[None])[0]

    def costs(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Floats:
        """Costs of many selections: levels (N, groups), blocks (N, blocks) -> (N, kinds)."""
        parts = [self._costs(levels[at : at + ROWS], blocks[at : at + ROWS]) for at in range(0, len(levels), ROWS)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.kinds)))

    def damage(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Floats:
        """Expected damage of many selections: of all that goes, without what lies inside a block that goes.

        The squared length of the sum of the changes of the output, whose squared lengths are the damages: more than
        the sum of the damages where changes point the same way (see `simprune.scores.output_changes`).
        """
        length = self._lengths(levels, blocks)
        return (length**2).sum(1) + ((length @ self._interactions) * length).sum(1)

    def damages(self, state: Selection) -> list[Floats]:
        """Damage of every level of every group, then (0, damage) of every block, with all else as in `state`.

        What a structure shares with the others counts in full: a step from `state` sees the whole of what it adds.
        """
        shared = 2 * (self._lengths(state.levels[None], state.blocks[None]) @ self._interactions)[0]
        alone = [np.array([0, entry.damage]) for entry in self.blocks] + [menu.damage for menu in self.menus]
        found = [own + np.sqrt(own) * more for own, more in zip(alone, shared, strict=True)]
        return [*found[len(self.blocks) :], *found[: len(self.blocks)]]

    @property
    def interacting(self) -> bool:
        """Whether damages do more than add up."""
        return bool(self._interactions.any())

    def exact(self, selection: Selection) -> Cost:
        """Cost by the cost model itself."""
        gone, levels = self.removed(selection)
        cut: dict[tuple[str, int], int] = {}
        for menu, level in levels:
            for key, count in menu.entry.group.cut(menu.gone(level)).items():
                cut[key] = cut.get(key, 0) + count
        stand_ins = {entry.name: entry.block.replace for entry in gone}
        return self.redundancy.costs.after(cut, list(stand_ins), stand_ins)

    def removed(self, selection: Selection) -> tuple[list[BlockRedundancy], list[tuple[Menu, int]]]:
        """Blocks that go, and groups that lose units with their levels; not what is inside a block that goes."""
        outer, live = self._effective(selection.levels[None], selection.blocks[None])
        gone = [entry for entry, out in zip(self.blocks, outer[0], strict=True) if out]
        return gone, [(menu, int(level)) for menu, level in zip(self.menus, live[0], strict=True) if level]

    def children(self) -> tuple[list[list[int]], list[int]]:
        """Items (groups, then blocks) right inside each block, and those inside none."""
        inside: list[list[int]] = [[] for _ in self.blocks]
        top = []
        depth = self._block_inside.sum(0)
        for item in range(len(self.menus) + len(self.blocks)):
            around = self.around(item)
            if len(around):
                inside[max(around, key=depth.__getitem__)].append(item)
            else:
                top.append(item)
        return inside, top

    def around(self, item: int) -> NDArray[np.intp]:
        """The blocks around a group or, counted behind the groups, a block."""
        groups = len(self.menus)
        outside = self._group_inside[:, item] if item < groups else self._block_inside[:, item - groups]
        return np.flatnonzero(outside)

    def inside(self, block: int) -> NDArray[np.intp]:
        """The groups inside a block."""
        return np.flatnonzero(self._group_inside[block])

    def gone(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N, blocks): those that go and are in no other that goes."""
        return blocks & ~(blocks @ self._block_inside)

    # ---- the arithmetic, vectorised over selections ----

    def _lengths(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Floats:
        """(N, structures), blocks first: root of the damage of what goes of each."""
        outer, live = self._effective(levels, blocks)
        lost = [outer * np.array([entry.damage for entry in self.blocks], float)]
        lost += [menu.damage[live[:, place], None] for place, menu in enumerate(self.menus)]
        return np.sqrt(np.concatenate(lost, 1))

    def _effective(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
        """Blocks that go and are in no other that goes; levels, 0 inside blocks that go."""
        return self.gone(blocks), np.where(blocks @ self._group_inside, 0, levels)

    @cached_property
    def _block_inside(self) -> NDArray[np.bool_]:
        """[b, c]: block c lies inside block b."""
        names = [entry.name for entry in self.blocks]
        return np.array([[c.startswith(f"{b}.") for c in names] for b in names], bool).reshape(len(names), len(names))

    @cached_property
    def _group_inside(self) -> NDArray[np.bool_]:
        """[b, g]: group g is named after something in block b, so that it cannot be edited without it."""
        groups = [f"{menu.entry.name}." for menu in self.menus]
        found = [[name.startswith(f"{entry.name}.") for name in groups] for entry in self.blocks]
        return np.array(found, bool).reshape(len(self.blocks), len(groups))

    @cached_property
    def _interactions(self) -> Floats:
        """(structures, structures), blocks first, without the diagonal."""
        known = self.redundancy.interactions
        keys = [("block", entry.name) for entry in self.blocks]
        keys += [(menu.entry.group.kind, menu.entry.name) for menu in self.menus]
        return np.zeros((len(keys),) * 2) if known is None else known.among(keys) - np.eye(len(keys))

    @cached_property
    def _terms(self) -> "_Terms":
        return _Terms(self)

    def _costs(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Floats:
        outer, live = self._effective(levels, blocks)
        counted = self._terms.costs(live, outer)
        return np.column_stack([counted, *(extra.costs(live, outer) for extra in self.extra.values())])


@dataclass(frozen=True)
class Additive:
    """A cost that adds up: the whole, and what each level of each group, and each block, saves."""

    whole: float
    groups: tuple[Floats, ...]
    blocks: Floats

    def only(self, levels: Sequence[Sequence[int] | NDArray[np.intp]]) -> "Additive":
        """With some of the levels of every group."""
        return replace(self, groups=tuple(each[list(some)] for each, some in zip(self.groups, levels, strict=True)))

    def costs(self, levels: NDArray[np.intp], outer: NDArray[np.bool_]) -> Floats:
        """Costs of many selections."""
        saved = outer @ self.blocks
        for place, table in enumerate(self.groups):
            saved = saved + table[levels[:, place]]
        return self.whole - saved


class _Terms:
    """The cost model's terms as arrays: lengths minus what every level of every group cuts, multiplied out."""

    def __init__(self, space: Space) -> None:
        names = [entry.name for entry in space.blocks]
        terms = list(space.redundancy.costs.terms({entry.name: entry.block.replace for entry in space.blocks}))
        lost = [_lost(menu) for menu in space.menus]
        cuttable = {key for tables in lost for key in tables}
        moving = [[factor for factor in term.factors if factor[1] in cuttable] for term in terms]
        width = max(map(len, moving), default=0)
        self.lengths = np.ones((len(terms), width))
        places: dict[tuple[str, int], list[int]] = {}  # where the length of a tensor's dimension stands
        for row, factors in enumerate(moving):
            for column, (length, key) in enumerate(factors):
                self.lengths[row, column] = length
                if key is not None:
                    places.setdefault(key, []).append(row * width + column)
        still = [math.prod(length for length, key in term.factors if key not in cuttable) for term in terms]
        each = np.array([term.each for term in terms], float).reshape(len(terms), 3)
        self.each = each * np.array(still, float)[:, None]
        drops = [
            [name != term.replaces and f"{term.owner}.".startswith(f"{name}.") for term in terms] for name in names
        ]
        self.drops = np.array(drops, float).reshape(len(names), len(terms))
        self.needs = np.array([names.index(term.replaces) if term.replaces else -1 for term in terms], int)
        offsets, groups, positions, tables, at = [], [], [], [], 0
        for place, found in enumerate(lost):
            for key, counts in found.items():
                for position in places.get(key, []):
                    offsets.append(at)
                    groups.append(place)
                    positions.append(position)
                tables.append(counts)
                at += len(counts)
        self.offsets, self.groups = np.array(offsets, int), np.array(groups, int)
        self.table = np.concatenate(tables) if tables else np.zeros(0)
        size, entries = self.lengths.size, np.arange(len(positions))
        self.scatter = csr_array((np.ones(len(positions)), (entries, positions)), shape=(len(positions), size))

    def costs(self, levels: NDArray[np.intp], outer: NDArray[np.bool_]) -> Floats:
        lost = self.table[self.offsets + levels[:, self.groups]] @ self.scatter
        elements = np.prod(self.lengths - lost.reshape(len(levels), *self.lengths.shape), axis=2)
        elements[outer.astype(float) @ self.drops > 0] = 0
        waiting = np.flatnonzero(self.needs >= 0)
        elements[:, waiting] *= outer[:, self.needs[waiting]]
        return np.rint(elements @ self.each)


def _places(counts: Sequence[int], some: Collection[int]) -> list[int]:
    return [place for place, count in enumerate(counts) if count in some]


def _lost(menu: Menu) -> dict[tuple[str, int], Floats]:
    """How many entries every tensor loses along each dimension, at every level of a menu."""
    tables: dict[tuple[str, int], list[set[int]]] = {}
    for part in menu.entry.group.slices:
        own = tables.setdefault((part.tensor, part.dim), [set() for _ in menu.order])
        for place, unit in enumerate(menu.order):
            own[place].update(part.indices[unit])
    counts = list(menu.counts)
    return {key: np.cumsum([0.0, *map(len, sets)])[counts] for key, sets in tables.items()}
