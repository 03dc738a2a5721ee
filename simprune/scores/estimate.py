"""The redundancy of a network: its structures are searched for, scored, and weighed by what they cost the output."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from simprune.core import registry
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import CostModel
from simprune.core.example import describe
from simprune.core.redundancy import (
    BLOCK_WHY,
    UNITS_WHY,
    BlockRedundancy,
    ChannelRedundancy,
    Interactions,
    Redundancy,
)
from simprune.core.registry import Choice
from simprune.core.structures import Block, UnitGroup
from simprune.measures import Measure
from simprune.scores.block_losses import BlockLosses
from simprune.scores.blocks import BlockContext, observe
from simprune.scores.channels import ChannelScore, Correlations, score_channels
from simprune.scores.output_changes import output_changes
from simprune.structures import check_structures, structure
from simprune.trace.capture import Reading, read
from simprune.trace.network import Network


@dataclass(frozen=True)
class Estimate:
    """The redundancy of a network as plain data, and what its blocks were scored in, which is large.

    Args:
        redundancy: of all structures.
        context: the network, its batches and what runs through its blocks; None for a network without blocks.
    """

    redundancy: Redundancy
    context: BlockContext | None


def estimate(
    network: Network,
    calibration: Iterable,
    measure: Measure,
    structures: Sequence[str] = ("channels", "blocks"),
    score: Choice = "second_order",
    block_score: Choice = "similarity",
    damage: bool = True,
    checkpoint: Checkpoint | None = None,
    seed: int = 0,
) -> Estimate:
    """The removable structures of a network, with a score of each on calibration batches.

    With the default scores the batches are walked at most three times: once to read the stream around blocks and the
    correlations of channels, once for the second-order cost, once for the changes of the output. Memory O(inputs x
    width) for the blocks and O(width^2) for the channels.

    Args:
        network: the original.
        calibration: batches that can be walked more than once.
        measure: similarity of the representations before and after blocks.
        structures: names of the kinds of structures that are searched for.
        score: of channels and other units, by name or as a mapping with `name` and options.
        block_score: of blocks, in the same way.
        damage: whether damages are measured as changes of the output, which only planners need, and which costs a
            backward pass. It needs a score that says what readers lose (its fact `output_losses`).
        checkpoint: where finished stages of the blocks are saved, and looked up.
        seed: of scores that draw at random.

    Returns:
        The redundancy, and the context in which blocks were scored.

    Raises:
        ValueError: for unknown structures or options, and when there are no batches.
        KeyError: for an unknown score.
    """
    kinds = check_structures(structures)
    score_part, _ = registry.read("score", score)
    registry.read("block_score", block_score)
    blocks: list[Block] = []
    groups: list[UnitGroup] = []
    refusals: list[tuple[str, str]] = []
    for kind in kinds:
        structures_of_kind, refused = structure(kind).find(network)
        first_chain = 1 + max((block.chain for block in blocks), default=-1)  # every kind numbers its chains from 0
        blocks += [replace(s, chain=s.chain + first_chain) for s in structures_of_kind if isinstance(s, Block)]
        groups += [s for s in structures_of_kind if isinstance(s, UnitGroup)]
        refusals += refused
    names = [block.name for block in blocks]
    weighed = damage and score_part.facts.get("output_losses", False)
    correlations, losses = Correlations(groups), BlockLosses(names if weighed else [])
    scored, context = _score_blocks(
        network, calibration, measure, blocks, block_score, checkpoint, [correlations, losses], seed
    )
    scores = score_channels(network, calibration, groups, score, seed, correlations.values()) if groups else {}
    interactions = None
    if weighed:
        scored, scores, interactions = _weigh(network, calibration, scored, groups, scores, losses, seed)
    redundancy = Redundancy(
        blocks=scored,
        channels=_describe_groups(groups, network.costs, scores, correlations, score_part),
        unprunable=tuple(refusals),
        similarity=None if context is None else context.matrix(names),
        measure=measure.id,
        costs=network.costs,
        fingerprint=network.fingerprint,
        inputs=describe(network.example),
        interactions=interactions,
        points=None if context is None else context.points(),
    )
    return Estimate(redundancy, context)


def _score_blocks(
    network: Network,
    calibration: Iterable,
    measure: Measure,
    blocks: Sequence[Block],
    score: Choice,
    checkpoint: Checkpoint | None,
    readings: Sequence[Reading],
    seed: int,
) -> tuple[tuple[BlockRedundancy, ...], BlockContext | None]:
    """Redundancy of every block, with damage 1 - redundancy; `readings` take part in the walk over the batches."""
    readings = [reading for reading in readings if reading.sites]
    if not blocks:
        if readings:
            read(network.model, calibration, readings)
        return (), None
    part, _ = registry.read("block_score", score)
    stream = observe(network, calibration, blocks, checkpoint, readings)
    context = BlockContext(network, calibration, stream, measure, checkpoint)
    names = tuple(block.name for block in blocks)
    known = None if checkpoint is None else checkpoint.load("scores")
    if known is not None:
        scores = dict(zip(names, known["scores"].tolist(), strict=True))
    else:
        scores = registry.bound("block_score", score, seed=seed)(context)
        if checkpoint is not None:
            checkpoint.save("scores", {"scores": torch.tensor([scores[name] for name in names], dtype=torch.float64)})
    total = network.costs.total().macs
    scored = tuple(
        BlockRedundancy(
            block,
            redundancy=scores[block.name],
            share=1 - network.costs.after(dropped=[block.name]).macs / total,
            damage=1 - scores[block.name],
            score=part.name,
            wording=part.facts.get("why", BLOCK_WHY),
        )
        for block in blocks
    )
    return scored, context


def _weigh(
    network: Network,
    calibration: Iterable,
    blocks: tuple[BlockRedundancy, ...],
    groups: Sequence[UnitGroup],
    scores: Mapping[str, ChannelScore],
    block_losses: BlockLosses,
    seed: int,
) -> tuple[tuple[BlockRedundancy, ...], dict[str, ChannelScore], Interactions]:
    """Damages of blocks and channels as changes of the output, and how these add up.

    The damage of a group's units is the score's, scaled so that half of the group costs what was measured. Blocks that
    were not scored by similarity keep the order of their scores: the most redundant block gets the least of the
    measured damages, the next one the second least, and so on. Such blocks do not interact, since the score already
    says how much a block adds.
    """
    names = [entry.name for entry in blocks]
    losses = {("block", name): [loss] for name, loss in block_losses.losses().items()}
    losses |= {(group.kind, group.name): list(scores[group.name].losses) for group in groups}
    damages, interactions = output_changes(
        network.model, calibration, {key: parts for key, parts in losses.items() if parts}, seed
    )
    of_blocks = {name: damages["block", name] for name in names}
    if any(entry.score != "similarity" for entry in blocks):
        ranked = sorted(blocks, key=lambda entry: entry.damage)
        of_blocks = {entry.name: damage for entry, damage in zip(ranked, sorted(of_blocks.values()), strict=True)}
        rows = {key: row for key, row in interactions.rows.items() if key[0] != "block"}
        interactions = replace(interactions, rows=rows)
    weighed = tuple(replace(entry, damage=of_blocks[entry.name]) for entry in blocks)
    scaled = {}
    for group in groups:
        score, measured = scores[group.name], damages.get((group.kind, group.name))
        expected = sum(score.damage[unit] for unit in score.order[: score.half])
        scaled[group.name] = score if measured is None or expected <= 0 else score.scaled(measured / expected)
    return weighed, scaled, interactions


def _describe_groups(
    groups: Sequence[UnitGroup],
    costs: CostModel,
    scores: Mapping[str, ChannelScore],
    correlations: Correlations,
    part: registry.Part,
) -> tuple[ChannelRedundancy, ...]:
    total = costs.total().macs
    values = correlations.values() if groups else {}
    described = []
    for group in groups:
        to_others = values[group.name].mean(0).abs().fill_diagonal_(-1)
        all_but_one = group.cut(range(1, group.size))
        score = scores[group.name]
        described.append(
            ChannelRedundancy(
                group,
                redundancy=score.redundancy,
                order=score.order,
                damage=score.damage,
                nearest=tuple(to_others.argmax(1).tolist()),
                share=1 - costs.after(all_but_one).macs / total,
                score=part.name,
                wording=part.facts.get("why", UNITS_WHY),
            )
        )
    return tuple(described)
