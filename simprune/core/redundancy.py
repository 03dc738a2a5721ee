"""What analysis says of every structure of a network, as plain data: all that planning needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from simprune.core.cost import CostModel
from simprune.core.similarity import SimilarityMatrix
from simprune.core.structures import Block, UnitGroup

STAND_INS = ("identity", "linear", "mean")  # of whole blocks


@dataclass(frozen=True)
class BlockRedundancy:
    """One block: how redundant in [0, 1] by `score`, its share of the macs, and what is lost when it goes.

    `damage` is in the unit of the channels' damage, so that depth and width can be weighed.
    """

    block: Block
    redundancy: float
    share: float
    damage: float
    score: str = "similarity"

    @property
    def name(self) -> str:
        return self.block.name

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "block",
            "name": self.name,
            "redundancy": _round(self.redundancy),
            "share": _round(self.share),
            "neighbour": "input",
        }

    def why(self, measure: str) -> str:
        """The score in words."""
        if self.score == "similarity":
            return f"its output is {self.redundancy:.3f} similar to its input ({measure})"
        return f"redundancy {self.redundancy:.3f} by {self.score}"


@dataclass(frozen=True)
class ChannelRedundancy:
    """One channel group, channel by channel.

    `order` lists channels from the most to the least redundant. `redundancy` is the share of a channel, in [0, 1], that
    those still there make up for when it goes; `damage` what is lost then (see `simprune.scores`); `nearest` the
    channel it correlates with most.
    """

    group: UnitGroup
    redundancy: tuple[float, ...]
    order: tuple[int, ...]
    damage: tuple[float, ...]
    nearest: tuple[int, ...]
    share: float
    score: str = "second_order"

    @property
    def name(self) -> str:
        return self.group.name

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.group.kind,
            "name": self.name,
            "size": self.group.size,
            "redundancy": [_round(value) for value in self.redundancy],
            "order": list(self.order),
            "nearest": list(self.nearest),
            "share": _round(self.share),
        }


@dataclass(frozen=True)
class TrialRemoval:
    """A plan of structures of one kind, from `first` to `last` in order of execution, at a share of the macs.

    `expected`, `measured`: its damage.
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
    """How the changes of the output by two structures point the same way: 0 (they add up) to 1 (the same change)."""

    rows: Mapping[tuple[str, str], int]  # of `values`, by kind and name
    values: np.ndarray

    def among(self, keys: Sequence[tuple[str, str]]) -> np.ndarray:
        """(keys, keys); structures that are not known do not interact."""
        found = np.eye(len(keys))
        known = [(index, self.rows[key]) for index, key in enumerate(keys) if key in self.rows]
        indices, rows = [index for index, _ in known], [row for _, row in known]
        found[np.ix_(indices, indices)] = self.values[np.ix_(rows, rows)]
        return found


@dataclass(frozen=True)
class Points:
    """Similarity (points, points), in [0, 1], of what runs through the blocks, at points before and after them.

    `chains`: points and blocks of every chain, in order; block i of a chain stands between its points i and i + 1.
    """

    names: tuple[str, ...]
    similarity: np.ndarray
    chains: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


@dataclass(frozen=True)
class Redundancy:
    """What `analyze` found; all that a planner needs, so that planning never touches the model."""

    blocks: tuple[BlockRedundancy, ...]
    channels: tuple[ChannelRedundancy, ...]
    unprunable: tuple[tuple[str, str], ...]
    similarity: SimilarityMatrix | None
    measure: str
    costs: CostModel
    fingerprint: str
    inputs: dict[str, Any]
    trials: tuple[TrialRemoval, ...] = ()
    interactions: Interactions | None = field(default=None, repr=False, compare=False)  # None: damages add up
    points: Points | None = field(default=None, repr=False, compare=False)  # None where there are no blocks

    @property
    def entries(self) -> tuple[BlockRedundancy | ChannelRedundancy, ...]:
        return (*self.blocks, *self.channels)

    def replacing(self, stand_in: str) -> "Redundancy":
        """The same, with whole blocks replaced by "identity", "linear" or "mean" (see `surgery.stand_ins`).

        Halves of blocks are added to a stream and leave nothing behind. ValueError for another stand-in.
        """
        if stand_in not in STAND_INS:
            raise ValueError(f"replace must be one of {', '.join(STAND_INS)}; got {stand_in!r}")
        blocks = tuple(
            entry if entry.block.replace == "zero" else replace(entry, block=replace(entry.block, replace=stand_in))
            for entry in self.blocks
        )
        return replace(self, blocks=blocks)

    def to_dict(self) -> dict[str, Any]:
        matrix = self.similarity
        return {
            "entries": [entry.to_dict() for entry in self.entries],
            "unprunable": [{"name": name, "reason": reason} for name, reason in self.unprunable],
            "similarity": None
            if matrix is None
            else {
                "measure": self.measure,
                "names": list(matrix.names),
                "values": [[_round(value) for value in row] for row in matrix.values.tolist()],
            },
            "cost": self.costs.total().to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
        }

    def table(self, width: int = 100) -> str:
        """Text table: every block and channel group with its redundancy and cost share."""
        by = [f"blocks by {self.measure}"] if self.blocks else []
        kinds = dict.fromkeys(entry.group.kind for entry in self.channels)
        by += [f"{' and '.join(kinds)} by {self.channels[0].score}"] if self.channels else []
        table = Table(title="Redundancy", caption="; ".join(by))
        table.add_column("structure", overflow="fold")
        table.add_column("kind")
        for column in ("redundancy", "of the macs"):
            table.add_column(column, justify="right")
        for entry in self.entries:
            if isinstance(entry, BlockRedundancy):
                table.add_row(entry.name, "block", f"{entry.redundancy:.3f}", f"{entry.share:.1%}")
            else:
                above = sum(value >= 0.9 for value in entry.redundancy)
                table.add_row(
                    entry.name,
                    f"{entry.group.size} {entry.group.kind}",
                    f"{sum(entry.redundancy) / entry.group.size:.3f} ({above} over 0.9)",
                    f"{entry.share:.1%}",
                )
        for name, reason in self.unprunable:
            table.add_row(name, "not removable", reason, "")
        console = Console(width=width)
        with console.capture() as text:
            console.print(table)
        return text.get()


def _round(value: float) -> float:
    return round(float(value), 6)
