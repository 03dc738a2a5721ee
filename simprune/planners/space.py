"""The space: all that may be removed, and what any selection of it costs and damages, many selections at once.

A group (of channels, heads or hidden units) has a menu: how many of its units may be removed. A selection is a level of
every group's menu, and for every block whether it is removed. Arrays of selections are levels (N, groups)
and flags (N, blocks). An item is a group or a block: items number the groups first, then the blocks.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy
from numpy.typing import NDArray

from simprune.core.cost import KINDS, Cost, Key
from simprune.core.names import around
from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Redundancy
from simprune.planners.constraints import Constraints, known_names

Floats = NDArray[np.float64]
ROWS = 512  # so many selections are evaluated at once, which bounds the memory


@dataclass(frozen=True)
class Menu:
    """What may be removed of one group.

    `order`: the units, as indices into the group, in the order in which they are removed. `counts`: how many units a
    level removes; the first is 0. `damage`: (levels,) expected damage of every level.
    """

    entry: ChannelRedundancy
    order: tuple[int, ...]
    counts: tuple[int, ...]
    damage: Floats

    @classmethod
    def of(cls, entry: ChannelRedundancy, constraints: Constraints, order: Sequence[int] | None = None) -> "Menu":
        """The levels that the constraints allow.

        Args:
            entry: the group, with the damage of every unit at its turn in the entry's own order.
            constraints: which widths are allowed.
            order: another order of removal. Units that are removed out of turn damage at least as much as the same
                number of units in the entry's order.
        """
        units = tuple(entry.order if order is None else order)
        counts = constraints.counts(entry.group, units)
        lost, least = (np.cumsum([0.0, *(entry.damage[unit] for unit in turn)]) for turn in (units, entry.order))
        return cls(entry, units, tuple(counts), np.maximum(lost, least)[counts])

    def only(self, levels: Sequence[int] | NDArray[np.intp]) -> "Menu":
        """The same menu with these of its levels alone."""
        return replace(self, counts=tuple(self.counts[level] for level in levels), damage=self.damage[list(levels)])

    def gone(self, level: int) -> tuple[int, ...]:
        """The units that a level, an index of `counts`, removes."""
        return self.order[: self.counts[level]]


@dataclass(frozen=True)
class Selection:
    """`levels`: (groups,) the level of every group's menu. `blocks`: (blocks,) whether a block is removed."""

    levels: NDArray[np.intp]
    blocks: NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """The removal of a block, or of a group's units up to a level of its menu; `item`: the group or block."""

    item: int
    level: int = 0


@dataclass(frozen=True)
class Space:
    """Everything that may be removed, and what that saves and damages.

    `redundancy`: of all structures, with the cost model. `menus`: one per group that can lose units. `blocks`: those
    that may be removed. `extra`: by kind, costs that the cost model does not know, and that add up over structures.
    """

    redundancy: Redundancy
    menus: tuple[Menu, ...]
    blocks: tuple[BlockRedundancy, ...]
    extra: Mapping[str, "Additive"]

    @classmethod
    def of(cls, redundancy: Redundancy, constraints: Constraints) -> "Space":
        """The space that the constraints leave; groups that cannot lose a unit are not in it.

        Raises:
            ValueError: for a protected name that the network does not have.
        """
        constraints.check_names(known_names(redundancy))
        menus = (Menu.of(entry, constraints) for entry in constraints.groups(redundancy))
        prunable = tuple(menu for menu in menus if len(menu.counts) > 1)
        return cls(redundancy, prunable, constraints.blocks(redundancy), {})

    def ordered(self, orders: Mapping[str, Sequence[int]], constraints: Constraints) -> "Space":
        """The same space with another order of removal inside groups, by name of the group.

        Only levels that are allowed in both orders are left.
        """
        menus = [Menu.of(menu.entry, constraints, orders[menu.entry.name]) for menu in self.menus]
        shared = [set(old.counts) & set(new.counts) for old, new in zip(self.menus, menus, strict=True)]
        space = self.only([_levels(old, counts) for old, counts in zip(self.menus, shared, strict=True)])
        reordered = [new.only(_levels(new, counts)) for new, counts in zip(menus, shared, strict=True)]
        return replace(space, menus=tuple(reordered))

    def only(self, levels: Sequence[Sequence[int] | NDArray[np.intp]]) -> "Space":
        """The same space with these levels of every group alone."""
        menus = tuple(menu.only(own) for menu, own in zip(self.menus, levels, strict=True))
        return replace(self, menus=menus, extra={kind: cost.only(levels) for kind, cost in self.extra.items()})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cost, in the order of the columns of `costs`."""
        return (*KINDS, *self.extra)

    @property
    def nothing(self) -> Selection:
        """The selection that removes nothing."""
        return Selection(np.zeros(len(self.menus), np.intp), np.zeros(len(self.blocks), bool))

    def along(self, steps: Sequence[Step]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The selections after 0, 1, ... all steps: levels (steps + 1, groups), blocks (steps + 1, blocks)."""
        levels = np.zeros((len(steps) + 1, len(self.menus)), np.intp)
        blocks = np.zeros((len(steps) + 1, len(self.blocks)), bool)
        for row, step in enumerate(steps, 1):
            if step.item < len(self.menus):
                levels[row, step.item] = step.level
            else:
                blocks[row, step.item - len(self.menus)] = True
        return np.maximum.accumulate(levels, 0), np.logical_or.accumulate(blocks, 0)

    def cost(self, selection: Selection) -> Floats:
        """(kinds,) the cost of one selection."""
        return self.costs(selection.levels[None], selection.blocks[None])[0]

    def costs(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Floats:
        """(N, kinds) the costs of selections with levels (N, groups) and blocks (N, blocks)."""
        parts = []
        for start in range(0, max(len(levels), 1), ROWS):
            outer, effective = self._effective(levels[start : start + ROWS], blocks[start : start + ROWS])
            extra = [table.costs(effective, outer) for table in self.extra.values()]
            parts.append(np.column_stack([self._terms.costs(effective, outer), *extra]))
        return np.concatenate(parts)

    def damage(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Floats:
        """(N,) expected damage of selections with levels (N, groups) and blocks (N, blocks).

        Whatever lies inside a removed block does not count. A structure's damage is the squared length of the change of
        the output that its removal causes. The damage of a selection is the squared length of the sum of these changes,
        which exceeds the sum of the damages where changes point the same way (see `simprune.scores.output_changes`).
        """
        length = self._lengths(levels, blocks)
        return (length**2).sum(1) + ((length @ self.interactions) * length).sum(1)

    def damages(self, state: Selection) -> list[Floats]:
        """(levels,) damage of every group, then (0, damage) of every block, when the others are removed as in `state`.

        The whole interaction of a structure with the others is counted as its own, which is what its removal adds.
        """
        shared = 2 * (self._lengths(state.levels[None], state.blocks[None]) @ self.interactions)[0]
        alone = [np.array([0, entry.damage]) for entry in self.blocks] + [menu.damage for menu in self.menus]
        damages = [own + np.sqrt(own) * more for own, more in zip(alone, shared, strict=True)]
        return [*damages[len(self.blocks) :], *damages[: len(self.blocks)]]

    def exact(self, selection: Selection) -> Cost:
        """The cost of a selection by the cost model itself, without the arrays that make `costs` fast."""
        removed, levels = self.removed(selection)
        cut: Counter[Key] = Counter()
        for menu, level in levels:
            cut.update(menu.entry.group.cut(menu.gone(level)))
        stand_ins = {entry.name: entry.block.replace for entry in removed}
        return self.redundancy.costs.after(cut, list(stand_ins), stand_ins)

    def removed(self, selection: Selection) -> tuple[list[BlockRedundancy], list[tuple[Menu, int]]]:
        """The blocks that a selection removes, and (menu, level) of the groups that lose units.

        Whatever lies inside a removed block is in neither list.
        """
        outer, effective = self._effective(selection.levels[None], selection.blocks[None])
        blocks = [entry for entry, is_removed in zip(self.blocks, outer[0], strict=True) if is_removed]
        return blocks, [(menu, int(level)) for menu, level in zip(self.menus, effective[0], strict=True) if level]

    def children(self) -> list[list[int]]:
        """The tree of items: for every block the items directly inside it; the last list: the items in no block."""
        children: list[list[int]] = [[] for _ in range(len(self.blocks) + 1)]
        depth = self.inside[:, len(self.menus) :].sum(0)
        for item, blocks in enumerate(self.inside.T):
            children[max(np.flatnonzero(blocks), key=depth.__getitem__, default=-1)].append(item)
        return children

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """(blocks, items) [b, i]: whether item i lies inside block b, and is removed with it.

        A group lies inside a block that it is named after, or whose submodule it is named after.
        """
        names = [*((menu.entry.name, *around(menu.entry.name)) for menu in self.menus)]
        names += [(*around(entry.name),) for entry in self.blocks]
        inside = np.zeros((len(self.blocks), len(names)), bool)
        inside[_numbers([entry.name for entry in self.blocks], names)] = True
        return inside

    @cached_property
    def interactions(self) -> Floats:
        """(structures, structures), blocks first: how far changes of the output agree, in [0, 1]; 0 on the diagonal."""
        known = self.redundancy.interactions
        keys = [("block", entry.name) for entry in self.blocks]
        keys += [(menu.entry.group.kind, menu.entry.name) for menu in self.menus]
        return np.zeros((len(keys),) * 2) if known is None else known.among(keys) - np.eye(len(keys))

    def outermost(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N, blocks) whether a block is removed and lies in no other removed block."""
        return blocks & ~self._within(blocks)[:, len(self.menus) :]

    # ---- the arithmetic, vectorised over selections ----

    def _lengths(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> Floats:
        """(N, structures), blocks first: square root of the damage of what is removed of every structure."""
        outer, effective = self._effective(levels, blocks)
        lost = [outer * np.array([entry.damage for entry in self.blocks], float)]
        lost += [menu.damage[effective[:, item], None] for item, menu in enumerate(self.menus)]
        return np.sqrt(np.concatenate(lost, 1))

    def _effective(self, levels: NDArray[np.intp], blocks: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
        """The outermost removed blocks (N, blocks), and the levels (N, groups), which are 0 inside removed blocks."""
        within = self._within(blocks)
        return blocks & ~within[:, len(self.menus) :], np.where(within[:, : len(self.menus)], 0, levels)

    def _within(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N, items) whether an item lies inside a removed block; every item lies in few, so that this is sparse."""
        return blocks.astype(np.float32) @ self._inside > 0

    @cached_property
    def _inside(self) -> "scipy.sparse.csr_array":
        return scipy.sparse.csr_array(self.inside.astype(np.float32))

    @cached_property
    def _terms(self) -> "_Terms":
        return _Terms(self)


@dataclass(frozen=True)
class Additive:
    """A cost whose savings add up.

    `whole`: the cost of the original. `groups`: for every group (levels,) savings. `blocks`: (blocks,) savings.
    """

    whole: float
    groups: tuple[Floats, ...]
    blocks: Floats

    def only(self, levels: Sequence[Sequence[int] | NDArray[np.intp]]) -> "Additive":
        """The same cost with these levels of every group alone."""
        return replace(self, groups=tuple(saved[list(own)] for saved, own in zip(self.groups, levels, strict=True)))

    def costs(self, levels: NDArray[np.intp], outer: NDArray[np.bool_]) -> Floats:
        """(N,) costs of selections, whose levels (N, groups) are 0 inside removed blocks."""
        saved = outer @ self.blocks
        for item, table in enumerate(self.groups):
            saved = saved + table[levels[:, item]]
        return self.whole - saved


class _Terms:
    """The terms of the cost model as arrays, so that many selections are evaluated at once.

    A term is a product of lengths (of dimensions of tensors) times the cost of one element. A selection shortens some
    of the lengths, drops the terms of removed blocks, and adds the terms of their stand-ins.

    `lengths`: (terms, factors) the lengths that a selection can shorten, padded with 1. `element_costs`: (terms, 3)
    macs, params and bytes per element, times the lengths that no selection shortens. `drops`: (blocks, terms) 1 where a
    term is dropped with a block, sparse. `stand_in_of`: (terms,) the block that a term's stand-in replaces, or -1.

    A cut is one length that one group shortens. `table` holds the entries lost at every level, for all groups one after
    another; `offsets` and `groups` say for every cut where its part of the table begins and which group's level counts;
    `scatter` (cuts, terms * factors) adds the cuts up at the lengths that they shorten.
    """

    def __init__(self, space: Space) -> None:
        names = [entry.name for entry in space.blocks]
        terms = list(space.redundancy.costs.terms({entry.name: entry.block.replace for entry in space.blocks}))
        lost = [_lost(menu) for menu in space.menus]
        cuttable = {key for tables in lost for key in tables}
        variable = [[factor for factor in term.factors if factor[1] in cuttable] for term in terms]
        width = max(map(len, variable), default=0)
        self.lengths = np.ones((len(terms), width))
        positions: dict[Key | None, list[int]] = {}  # in the flat `lengths`, by tensor and dimension
        for row, factors in enumerate(variable):
            for column, (length, key) in enumerate(factors):
                self.lengths[row, column] = length
                positions.setdefault(key, []).append(row * width + column)
        constant = [math.prod(length for length, key in term.factors if key not in cuttable) for term in terms]
        per_element = np.array([term.per_element for term in terms], float).reshape(len(terms), 3)
        self.element_costs = per_element * np.array(constant, float)[:, None]
        owners = [[name for name in (term.owner, *around(term.owner)) if name != term.replaces] for term in terms]
        dropped = _numbers(names, owners)
        self.drops = scipy.sparse.csr_array((np.ones(len(dropped[0])), dropped), shape=(len(names), len(terms)))
        self.stand_in_of = np.array([names.index(term.replaces) if term.replaces else -1 for term in terms], int)
        cuts: list[tuple[int, int, int]] = []  # where a part of the table begins, the group, the position of the length
        tables, start = [np.zeros(0)], 0
        for item, lost_by_key in enumerate(lost):
            for key, counts in lost_by_key.items():
                cuts += [(start, item, position) for position in positions.get(key, [])]
                tables.append(counts)
                start += len(counts)
        self.table = np.concatenate(tables)
        self.offsets, self.groups, targets = np.array(cuts, int).reshape(-1, 3).T
        rows = np.arange(len(cuts))
        self.scatter = scipy.sparse.csr_array(
            (np.ones(len(cuts)), (rows, targets)), shape=(len(cuts), self.lengths.size)
        )

    def costs(self, levels: NDArray[np.intp], outer: NDArray[np.bool_]) -> Floats:
        """(N, 3) macs, params and bytes of selections: levels (N, groups), outermost removed blocks (N, blocks)."""
        lost = self.table[self.offsets + levels[:, self.groups]] @ self.scatter
        elements = np.prod(self.lengths - lost.reshape(len(levels), *self.lengths.shape), axis=2)
        elements[outer.astype(float) @ self.drops > 0] = 0
        stand_ins = np.flatnonzero(self.stand_in_of >= 0)
        elements[:, stand_ins] *= outer[:, self.stand_in_of[stand_ins]]
        return np.rint(elements @ self.element_costs)


def _levels(menu: Menu, counts: Collection[int]) -> list[int]:
    """The levels of a menu that remove one of these numbers of units."""
    return [level for level, count in enumerate(menu.counts) if count in counts]


def _numbers(names: Sequence[str], columns: Sequence[Collection[str]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows and columns of a table of names at which a column has the name.

    >>> [numbers.tolist() for numbers in _numbers(["a", "b"], [["b"], [], ["a", "c", "b"]])]
    [[1, 0, 1], [0, 2, 2]]
    """
    known: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        known.setdefault(name, []).append(row)
    pairs = [(row, column) for column, own in enumerate(columns) for name in own for row in known.get(name, ())]
    rows, places = np.array(pairs, np.intp).reshape(-1, 2).T
    return rows, places


def _lost(menu: Menu) -> dict[Key, Floats]:
    """By tensor and dimension, (levels,) how many entries the dimension loses at every level of a menu."""
    removed: dict[Key, list[set[int]]] = {}
    for part in menu.entry.group.slices:
        per_unit = removed.setdefault((part.tensor, part.dim), [set() for _ in menu.order])
        for turn, unit in enumerate(menu.order):
            per_unit[turn].update(part.indices[unit])
    counts = list(menu.counts)
    return {key: np.cumsum([0.0, *map(len, sets)])[counts] for key, sets in removed.items()}
