"""What analysis says of every structure of a network, as plain data: all that planning needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simprune.core.cost import CostModel
from simprune.core.similarity import SimilarityMatrix
from simprune.core.structures import Block, UnitGroup

STAND_INS = ("identity", "linear", "mean")  # of whole blocks
# The words in which a plan gives its reasons, unless a score registers others as its fact `why`.
BLOCK_WHY = "redundancy {redundancy:.3f} by {score}"
UNITS_WHY = "redundancy {least:.3f} or more (mean {mean:.3f}) by {score}"


@dataclass(frozen=True)
class BlockRedundancy:
    """How redundant one block is.

    Args:
        block: the block.
        redundancy: in [0, 1], by `score`; 1 for a block that can go first.
        share: of the network's macs that the block costs, in [0, 1].
        damage: expected squared change of the output without the block, as a share of its variance. The damage of
            channels has the same unit, so that depth and width can be weighed.
        score: name of the score.
        wording: format of `why`, with the fields redundancy, score and measure.
    """

    block: Block
    redundancy: float
    share: float
    damage: float
    score: str = "similarity"
    wording: str = field(default=BLOCK_WHY, repr=False)

    @property
    def name(self) -> str:
        return self.block.name

    def to_dict(self) -> dict[str, Any]:
        numbers = {"redundancy": _round(self.redundancy), "share": _round(self.share)}
        return {"kind": "block", "name": self.name, **numbers, "neighbour": "input"}

    def by(self, measure: str) -> str:
        """The score, and in brackets the measure of similarity that it reads, if it reads one."""
        return f"{self.score} ({measure})" if "{measure}" in self.wording else self.score

    def why(self, measure: str) -> str:
        """The redundancy in words; `measure` is the name of the similarity that analysis used."""
        return self.wording.format(redundancy=self.redundancy, score=self.score, measure=measure)


@dataclass(frozen=True)
class ChannelRedundancy:
    """How redundant every unit of one group is: every channel of a layer, or every head of an attention module.

    Args:
        group: the group of C units.
        redundancy: (C,) in [0, 1], the share of a unit that the remaining ones make up for when it is removed.
        order: (C,) the units from the first to be removed to the last.
        damage: (C,) what is lost when a unit is removed at its turn (see `simprune.scores.channels`).
        nearest: (C,) the other unit that a unit correlates with most.
        share: of the network's macs that all units but one cost, in [0, 1].
        score: name of the score.
        wording: format of `why`, with the fields least, mean and score.
    """

    group: UnitGroup
    redundancy: tuple[float, ...]
    order: tuple[int, ...]
    damage: tuple[float, ...]
    nearest: tuple[int, ...]
    share: float
    score: str = "second_order"
    wording: str = field(default=UNITS_WHY, repr=False)

    @property
    def name(self) -> str:
        return self.group.name

    def why(self, units: Sequence[int]) -> str:
        """The redundancy of the units that are removed, in words: the least and the mean of them."""
        values = [self.redundancy[unit] for unit in units]
        return self.wording.format(least=min(values), mean=sum(values) / len(values), score=self.score)

    def to_dict(self) -> dict[str, Any]:
        names = {"kind": self.group.kind, "name": self.name, "size": self.group.size}
        redundancy = [_round(value) for value in self.redundancy]
        units = {"redundancy": redundancy, "order": list(self.order), "nearest": list(self.nearest)}
        return {**names, **units, "share": _round(self.share)}


@dataclass(frozen=True)
class TrialRemoval:
    """The removal, on trial, of structures of one kind: what it was expected to cost the output, and what it cost.

    Args:
        kind: of the structures.
        first, last: names of the first and the last structure, in order of execution.
        macs: share of the network's macs that the trial removed, in [0, 1].
        expected, measured: damage, as a share of the output's variance.
    """

    kind: str
    first: str
    last: str
    macs: float
    expected: float
    measured: float

    def to_dict(self) -> dict[str, Any]:
        names = {key: getattr(self, key) for key in ("kind", "first", "last")}
        return names | {key: _round(getattr(self, key)) for key in ("macs", "expected", "measured")}


@dataclass(frozen=True)
class Interactions:
    """How far the changes of the output by two structures point the same way.

    Args:
        rows: row of `values` of every structure, by its kind and name.
        values: (structures, structures) in [0, 1]: 0 where damages add up, 1 where both cause the same change.
    """

    rows: Mapping[tuple[str, str], int]
    values: np.ndarray

    def among(self, keys: Sequence[tuple[str, str]]) -> np.ndarray:
        """(keys, keys) values of some structures; one that is not known interacts with no other.

        >>> pair = Interactions({("block", "a"): 0, ("block", "b"): 1}, np.array([[1.0, 0.5], [0.5, 1.0]]))
        >>> pair.among([("block", "b"), ("block", "new"), ("block", "a")]).tolist()
        [[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]]
        """
        values = np.eye(len(keys))
        known = [index for index, key in enumerate(keys) if key in self.rows]
        rows = [self.rows[keys[index]] for index in known]
        values[np.ix_(known, known)] = self.values[np.ix_(rows, rows)]
        return values


@dataclass(frozen=True)
class Points:
    """Similarity of the representations before and after blocks.

    Args:
        names: of the points, in order of execution.
        similarity: (points, points) in [0, 1].
        chains: (points, blocks) of every chain, by name and in order; block i of a chain lies between its points i and
            i + 1.
    """

    names: tuple[str, ...]
    similarity: np.ndarray
    chains: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@dataclass(frozen=True)
class Redundancy:
    """The redundancy of every structure of a network, as plain data.

    It holds all that a planner needs, and no model, batches or activations, so that it can be stored and planned from
    again and again.

    Args:
        blocks, channels: the removable structures; `channels` holds all groups of units, heads included.
        unprunable: (name, reason) of what cannot be removed.
        similarity: of the points before and after blocks, by the measure's own values; None where there are no blocks.
        measure: id of the similarity measure.
        costs: exact costs of the network and of what remains of it after removals.
        fingerprint: of the network, see `simprune.core.plan.fingerprint`.
        inputs: description of an example input.
        trials: removals that were tried on the network.
        interactions: how damages combine; None where they add up.
        points: similarities of the points in [0, 1]; None where there are no blocks.
    """

    blocks: tuple[BlockRedundancy, ...]
    channels: tuple[ChannelRedundancy, ...]
    unprunable: tuple[tuple[str, str], ...]
    similarity: SimilarityMatrix | None
    measure: str
    costs: CostModel
    fingerprint: str
    inputs: dict[str, Any]
    trials: tuple[TrialRemoval, ...] = ()
    interactions: Interactions | None = field(default=None, repr=False, compare=False)
    points: Points | None = field(default=None, repr=False, compare=False)

    @property
    def entries(self) -> tuple[BlockRedundancy | ChannelRedundancy, ...]:
        """All removable structures, blocks first."""
        return (*self.blocks, *self.channels)

    def replacing(self, stand_in: str) -> "Redundancy":
        """A copy in which another module replaces whole blocks (see `simprune.repair.stand_ins`).

        The output of a sub-block is added to a stream, so nothing has to replace it.

        Args:
            stand_in: "identity", "linear" or "mean".

        Raises:
            ValueError: for another stand-in.
        """
        if stand_in not in STAND_INS:
            raise ValueError(f"replace must be one of {', '.join(STAND_INS)}; got {stand_in!r}")
        blocks = tuple(
            entry if entry.block.replace == "zero" else replace(entry, block=replace(entry.block, replace=stand_in))
            for entry in self.blocks
        )
        return replace(self, blocks=blocks)

    def to_dict(self) -> dict[str, Any]:
        """The content of redundancy.json; interactions and points are left out."""
        similarity = None
        if self.similarity is not None:
            values = [[_round(value) for value in row] for row in self.similarity.values]
            similarity = {"measure": self.measure, "names": list(self.similarity.names), "values": values}
        return {
            "entries": [entry.to_dict() for entry in self.entries],
            "unprunable": [{"name": name, "reason": reason} for name, reason in self.unprunable],
            "similarity": similarity,
            "cost": self.costs.total().to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
        }

    def table(self, width: int = 100) -> str:
        """Every structure with its redundancy and its share of the macs, as text of at most `width` columns."""
        from rich.console import Console
        from rich.table import Column, Table

        by = [f"blocks by {self.blocks[0].by(self.measure)}"] if self.blocks else []
        kinds = dict.fromkeys(entry.group.kind for entry in self.channels)
        by += [f"{' and '.join(kinds)} by {self.channels[0].score}"] if self.channels else []
        numbers = [Column(name, justify="right") for name in ("redundancy", "of the macs")]
        table = Table(Column("structure", overflow="fold"), "kind", *numbers, title="Redundancy", caption="; ".join(by))
        for entry in self.blocks:
            table.add_row(entry.name, "block", f"{entry.redundancy:.3f}", f"{entry.share:.1%}")
        for entry in self.channels:
            size, above = entry.group.size, sum(value >= 0.9 for value in entry.redundancy)
            redundancy = f"{sum(entry.redundancy) / size:.3f} ({above} over 0.9)"
            table.add_row(entry.name, f"{size} {entry.group.kind}", redundancy, f"{entry.share:.1%}")
        for reason in dict.fromkeys(reason for _, reason in self.unprunable):
            names = [name for name, of_name in self.unprunable if of_name == reason]
            table.add_row(", ".join(names), "not removable", reason, "")
        console = Console(width=width, markup=False, highlight=False, emoji=False)
        with console.capture() as capture:
            console.print(table)
        return capture.get()


def _round(value: float) -> float:
    return round(float(value), 6)
