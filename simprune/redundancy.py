"""From similarity to redundancy: how well each block's input, and each channel's neighbours, can stand in for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from simprune.batches import checked
from simprune.cost import CostModel, Example, cost_model
from simprune.depth import BlockScore, View, block_scorer, name_of, observe, score_blocks
from simprune.depth import as_redundancy as as_redundancy
from simprune.example import describe, example_of
from simprune.kept import Kept
from simprune.measures import Measure, SimilarityMatrix
from simprune.planning.plan import fingerprint
from simprune.scores import Score, scorer
from simprune.scores.block_losses import block_losses
from simprune.scores.output_changes import Interactions, output_changes
from simprune.scores.predictability import reader_correlations
from simprune.structures import FINDERS, Block, ChannelGroup

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

    group: ChannelGroup
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
    view: View | None = field(default=None, repr=False, compare=False)  # what the blocks were seen in, if there are any

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


def estimate(
    model: nn.Module,
    calibration: Iterable,
    measure: Measure,
    structures: Sequence[str] = ("channels", "blocks"),
    score: str = "second_order",
    block_score: BlockScore = "similarity",
    damage: bool = True,
    kept: Kept | None = None,
) -> Redundancy:
    """Find the structures of a model and score them on calibration batches.

    Blocks: `block_score`, one of `simprune.depth`, by name or as a mapping with `name` and its options. Channels:
    `score`, one of `simprune.scores`, at the inputs of every reader, all positions. `damage`: also what only a planner
    needs to know of blocks, at the price of a backward pass. `kept`: where finished stages of the blocks are kept and
    looked up. Memory O(rows x width) for the
    blocks and O(width^2) for the channels.
    """
    block_scorer(block_score)
    unknown = sorted(set(structures) - set(FINDERS))
    if unknown or not structures:
        raise ValueError(f"structures must be some of {', '.join(FINDERS)}; got {', '.join(unknown) or 'none'}")
    first = next(iter(checked(calibration, "calibration")), None)
    if first is None:
        raise ValueError("calibration has no batches; give at least one")
    example = example_of(first)
    costs = cost_model(model, example)
    found = {kind: FINDERS[kind](model, example) for kind in FINDERS if kind in structures}
    blocks = found.get("blocks", ([], []))[0]
    after = 1 + max((block.chain for block in blocks), default=-1)
    blocks = [*blocks, *(replace(half, chain=half.chain + after) for half in found.get("sub_blocks", ([], []))[0])]
    groups = [*found.get("channels", ([], []))[0], *found.get("heads", ([], []))[0]]
    scored, view = _score_blocks(model, calibration, measure, blocks, costs, example, block_score, kept)
    scores = scorer(score)(model, calibration, groups) if groups else {}
    interactions = None
    if damage and score == "second_order":
        scored, scores, interactions = _weigh(model, calibration, scored, groups, scores)
    return Redundancy(
        blocks=scored,
        channels=_describe_channels(model, calibration, groups, costs, scores, score),
        unprunable=tuple(refusal for _, refused in found.values() for refusal in refused),
        similarity=None if view is None else view.matrix([block.name for block in blocks]),
        measure=measure.id,
        costs=costs,
        fingerprint=fingerprint(model),
        inputs=describe(example),
        interactions=interactions,
        view=view,
    )


def _score_blocks(
    model: nn.Module,
    calibration: Iterable,
    measure: Measure,
    blocks: Sequence[Block],
    costs: CostModel,
    example: Example,
    score: BlockScore,
    kept: Kept | None,
) -> tuple[tuple[BlockRedundancy, ...], View | None]:
    if not blocks:
        return (), None
    view = View(model, calibration, observe(model, calibration, blocks, example, kept), measure, kept)
    names = tuple(block.name for block in blocks)
    known = None if kept is None else kept.load("scores")
    if known is not None:
        scores = dict(zip(names, known["scores"].tolist(), strict=True))
    else:
        scores = score_blocks(view, score)
        if kept is not None:
            kept.save("scores", {"scores": torch.tensor([scores[name] for name in names], dtype=torch.float64)})
    total = costs.total().macs
    scored = tuple(
        BlockRedundancy(
            block,
            redundancy=scores[block.name],
            share=1 - costs.after(dropped=[block.name]).macs / total,
            damage=1 - scores[block.name],
            score=str(name_of(score)),
        )
        for block in blocks
    )
    return scored, view


def _weigh(
    model: nn.Module,
    calibration: Iterable,
    blocks: tuple[BlockRedundancy, ...],
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Score],
) -> tuple[tuple[BlockRedundancy, ...], dict[str, Score], Interactions]:
    """Damages of blocks and channels as changes of the output, and how these add up.

    For channels the damage of half of a group sets the scale; within the group the score's own damages hold. Blocks
    that were not scored by similarity keep the order of their scores: the most redundant one gets the least damage of
    all, and so on, and they do not interact, as it is the score that says how much each adds.
    """
    names = [entry.name for entry in blocks]
    losses = (
        {("block", name): [loss] for name, loss in block_losses(model, calibration, names).items()} if names else {}
    )
    losses |= {(group.kind, group.name): list(scores[group.name].losses) for group in groups}
    found, interactions = output_changes(model, calibration, {key: some for key, some in losses.items() if some})
    own = {name: found["block", name] for name in names}
    if any(entry.score != "similarity" for entry in blocks):
        ranked = sorted(blocks, key=lambda entry: entry.damage)
        own = {entry.name: damage for entry, damage in zip(ranked, sorted(own.values()), strict=True)}
        places = {key: row for key, row in interactions.places.items() if key[0] != "block"}
        interactions = replace(interactions, places=places)
    weighed = tuple(replace(entry, damage=own[entry.name]) for entry in blocks)
    scaled = {}
    for group in groups:
        score, measured = scores[group.name], found.get((group.kind, group.name))
        expected = sum(score.damage[unit] for unit in score.order[: score.half])
        scaled[group.name] = score if measured is None or expected <= 0 else score.scaled(measured / expected)
    return weighed, scaled, interactions


def _describe_channels(
    model: nn.Module,
    calibration: Iterable,
    groups: Sequence[ChannelGroup],
    costs: CostModel,
    scores: Mapping[str, Score],
    score: str,
) -> tuple[ChannelRedundancy, ...]:
    if not groups:
        return ()
    correlations = reader_correlations(model, calibration, groups)
    total = costs.total().macs
    scored = []
    for group in groups:
        away = correlations[group.name].mean(0).abs().fill_diagonal_(-1)
        every_but_one = group.cut(range(1, group.size))
        found = scores[group.name]
        scored.append(
            ChannelRedundancy(
                group,
                redundancy=found.redundancy,
                order=found.order,
                damage=found.damage,
                nearest=tuple(away.argmax(1).tolist()),
                share=1 - costs.after(every_but_one).macs / total,
                score=score,
            )
        )
    return tuple(scored)
