"""From similarity to redundancy: how well each block's input, and each channel's neighbours, can stand in for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from simprune.batches import checked
from simprune.capture import Site, capture, run
from simprune.cost import CostModel, cost_model
from simprune.example import describe, example_of
from simprune.measures import Measure, SimilarityMatrix
from simprune.moments import Moments
from simprune.planning.plan import fingerprint
from simprune.structures import FINDERS, Block, ChannelGroup

RIDGE = 1e-4  # of a channel's unit variance: keeps exact duplicates solvable


@dataclass(frozen=True)
class BlockRedundancy:
    """One residual block: similarity of its input and output in [0, 1], and its share of the macs."""

    block: Block
    redundancy: float
    share: float

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


@dataclass(frozen=True)
class ChannelRedundancy:
    """One channel group, channel by channel.

    `order` lists channels from the most to the least redundant: at each step goes the channel that those still there
    predict best. `redundancy` is the share of its variance that they predict then, in [0, 1]; `nearest` the channel
    it correlates with most.
    """

    group: ChannelGroup
    redundancy: tuple[float, ...]
    order: tuple[int, ...]
    nearest: tuple[int, ...]
    share: float

    @property
    def name(self) -> str:
        return self.group.name

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "channels",
            "name": self.name,
            "size": self.group.size,
            "redundancy": [_round(value) for value in self.redundancy],
            "order": list(self.order),
            "nearest": list(self.nearest),
            "share": _round(self.share),
        }


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

    @property
    def entries(self) -> tuple[BlockRedundancy | ChannelRedundancy, ...]:
        return (*self.blocks, *self.channels)

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
        }

    def table(self, width: int = 100) -> str:
        """Text table: every block and channel group with its redundancy and cost share."""
        table = Table(title="Redundancy", caption=f"blocks by {self.measure}; channels by predictability")
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
                    f"{entry.group.size} channels",
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
) -> Redundancy:
    """Find the structures of a model and score them on calibration batches.

    Blocks: `measure` between a block's input and its output, pooled over positions. Channels: correlation at the
    inputs of every reader, all positions. Two forward passes over the batches; memory O(rows x width) for the blocks
    and O(width^2) for the channels.
    """
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
    groups = [*found.get("channels", ([], []))[0], *found.get("heads", ([], []))[0]]
    scored, similarity = _score_blocks(model, calibration, measure, blocks, costs)
    return Redundancy(
        blocks=scored,
        channels=_score_channels(model, calibration, groups, costs),
        unprunable=tuple(refusal for _, refused in found.values() for refusal in refused),
        similarity=similarity,
        measure=measure.id,
        costs=costs,
        fingerprint=fingerprint(model),
        inputs=describe(example),
    )


def _score_blocks(
    model: nn.Module, calibration: Iterable, measure: Measure, blocks: Sequence[Block], costs: CostModel
) -> tuple[tuple[BlockRedundancy, ...], SimilarityMatrix | None]:
    if not blocks:
        return (), None
    sites = [Site(block.name, "pool", side) for block in blocks for side in ("input", "output")]
    rows = capture(model, calibration, sites)
    prepared = {name: measure.prepare(values) for name, values in rows.items()}
    total = costs.total().macs
    scored = tuple(
        BlockRedundancy(
            block,
            as_redundancy(measure, measure.compare(prepared[f"{block.name}:input"], prepared[block.name])),
            1 - costs.after(dropped=[block.name]).macs / total,
        )
        for block in blocks
    )
    names = tuple(block.name for block in blocks)
    return scored, SimilarityMatrix(names, measure.matrix([prepared[name] for name in names]))


def as_redundancy(measure: Measure, value: float) -> float:
    """A score as redundancy in [0, 1]: similarities are clipped, distances d of range [0, top] become 1 - d / top.

    Distances without an upper end become 1 / (1 + d). An undefined score (NaN) counts as no redundancy.
    """
    if value != value:
        return 0.0
    if not measure.larger_is_more_similar:
        top = measure.range[1]
        value = 1 / (1 + value) if top == float("inf") else 1 - value / top
    return min(max(value, 0.0), 1.0)


def _score_channels(
    model: nn.Module, calibration: Iterable, groups: Sequence[ChannelGroup], costs: CostModel
) -> tuple[ChannelRedundancy, ...]:
    if not groups:
        return ()
    correlations = reader_correlations(model, calibration, groups)
    total = costs.total().macs
    scored = []
    for group in groups:
        order, unexplained = eliminate(correlations[group.name])
        away = correlations[group.name].mean(0).abs().fill_diagonal_(-1)
        every_but_one = group.cut(range(1, group.size))
        scored.append(
            ChannelRedundancy(
                group,
                redundancy=tuple((1 - unexplained).clamp(0, 1).tolist()),
                order=tuple(order),
                nearest=tuple(away.argmax(1).tolist()),
                share=1 - costs.after(every_but_one).macs / total,
            )
        )
    return tuple(scored)


def reader_correlations(model: nn.Module, calibration: Iterable, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """(readers, C, C) correlation of each group's channels at the input of every module that reads them."""
    readers: dict[str, list[tuple[str, Tensor]]] = {}
    for group in groups:
        for part in group.slices:
            if part.side == "in" and part.tensor.endswith("weight"):
                readers.setdefault(part.module, []).append((group.name, torch.tensor(part.indices)))
    moments: dict[tuple[str, str], Moments] = {}

    def see(site: Site, value: Tensor) -> None:
        rows = site.rows(value)
        for group, indices in readers[site.module]:
            entries = rows[:, indices.to(rows.device)]  # (rows, C, entries per channel)
            found = Moments.of(entries.movedim(1, -1).flatten(0, 1))
            key = (group, site.module)
            moments[key] = moments[key].merge(found) if key in moments else found

    run(model, calibration, [Site(name, "positions", "input") for name in readers], see)
    return {
        group.name: torch.stack([_correlation(found) for (name, _), found in moments.items() if name == group.name])
        for group in groups
    }


def _correlation(moments: Moments) -> Tensor:
    """Correlation matrix on the CPU; a dead channel has zero variance and correlates with nothing, itself included."""
    covariance = moments.covariance.cpu().clone()
    scale = covariance.diagonal().clamp(min=0).sqrt()
    alive = scale > 1e-12 * max(float(scale.max()), 1e-300)
    inverse = torch.where(alive, 1 / scale.where(alive, torch.ones_like(scale)), torch.zeros_like(scale))
    return covariance * torch.outer(inverse, inverse)


def eliminate(correlations: Tensor) -> tuple[list[int], Tensor]:
    """Backward elimination: remove again and again the channel that the remaining ones predict best.

    `correlations`: (readers, C, C). Returns the order of removal, the last channel included, and each channel's
    unexplained share of variance when it went (mean over readers; 0 for a dead channel, 1 for the last one).
    Cost O(readers x C^3).

    >>> order, unexplained = eliminate(torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]))
    >>> order[0] in (0, 1), bool(unexplained[order[0]] < 0.01)
    (True, True)
    """
    width = correlations.shape[-1]
    alive = correlations.diagonal(dim1=1, dim2=2) > 0.5  # (readers, C)
    ridged = correlations.double() + torch.diag_embed(torch.where(alive, RIDGE, 1.0).double())
    precision = torch.linalg.inv(ridged)
    unexplained = torch.ones(width, dtype=torch.float64)
    remaining = torch.ones(width, dtype=torch.bool)
    order: list[int] = []
    for _ in range(width - 1):
        share = torch.where(alive, 1 / precision.diagonal(dim1=1, dim2=2), 0.0).mean(0)
        share[~remaining] = float("inf")
        channel = int(share.argmin())
        unexplained[channel] = share[channel]
        remaining[channel] = False
        order.append(channel)
        column = precision[:, :, channel].clone()
        precision -= column[:, :, None] * column[:, None, :] / column[:, channel, None, None]
        precision[:, channel, channel] = 1.0  # out of the game; keeps the division above defined
    order.append(int(remaining.nonzero()[0, 0]))
    return order, unexplained
