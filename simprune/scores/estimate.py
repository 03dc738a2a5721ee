"""From similarity to redundancy: how well each block's input, and each channel's neighbours, can stand in for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from simprune.core import registry
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import CostModel
from simprune.core.example import describe
from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Interactions, Redundancy
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
    """The redundancy, and apart from it what its blocks were seen in; None where there are no blocks."""

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
    """Find the structures of a network and score them on calibration batches.

    The batches are walked at most three times with the default scores: once to read the stream around blocks and the
    correlations of channels, once for the second-order cost, once for the changes of the output. Memory O(rows x
    width) for the blocks and O(width^2) for the channels.

    Args:
        network: the original.
        calibration: batches.
        measure: similarity of what runs through the blocks.
        structures: names of the kinds of structures that are looked for.
        score: of channels and other units, by name or as a mapping with `name` and options.
        block_score: of blocks, in the same way.
        damage: whether damages of blocks are changes of the output, which only planners need and costs a backward pass.
        checkpoint: where finished stages of the blocks are written, and looked up.
        seed: of scores that draw at random.

    Raises:
        ValueError: for unknown structures or options, and when there are no batches.
        KeyError: for an unknown score.
    """
    kinds = check_structures(structures)
    for kind, choice in (("score", score), ("block_score", block_score)):
        registry.read(kind, choice)
    finders = {kind: structure(kind).find(network) for kind in kinds}
    blocks: list[Block] = []
    groups: list[UnitGroup] = []
    for found, _ in finders.values():
        after = 1 + max((block.chain for block in blocks), default=-1)
        blocks += [replace(each, chain=each.chain + after) for each in found if isinstance(each, Block)]
        groups += [each for each in found if isinstance(each, UnitGroup)]
    names = [block.name for block in blocks]
    weighed = damage and _name(score) == "second_order"
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
        channels=_describe_groups(groups, network.costs, scores, correlations, _name(score)),
        unprunable=tuple(refusal for _, refused in finders.values() for refusal in refused),
        similarity=None if context is None else context.matrix(names),
        measure=measure.id,
        costs=network.costs,
        fingerprint=network.fingerprint,
        inputs=describe(network.example),
        interactions=interactions,
        points=None if context is None else context.points(),
    )
    return Estimate(redundancy, context)


def _name(choice: Choice) -> str:
    return choice if isinstance(choice, str) else str(choice["name"])


def _score_blocks(
    network: Network,
    calibration: Iterable,
    measure: Measure,
    blocks: Sequence[Block],
    score: Choice,
    checkpoint: Checkpoint | None,
    beside: Sequence[Reading],
    seed: int,
) -> tuple[tuple[BlockRedundancy, ...], BlockContext | None]:
    """Redundancy of every block; in the same walk over the batches, what stands `beside` is read."""
    if not blocks:
        if any(each.sites for each in beside):
            read(network.model, calibration, beside)
        return (), None
    stream = observe(network, calibration, blocks, checkpoint, [each for each in beside if each.sites])
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
            score=_name(score),
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

    For channels the damage of half of a group sets the scale; within the group the score's own damages hold. Blocks
    that were not scored by similarity keep the order of their scores: the most redundant one gets the least damage of
    all, and so on, and they do not interact, as it is the score that says how much each adds.
    """
    names = [entry.name for entry in blocks]
    losses = {("block", name): [loss] for name, loss in block_losses.losses().items()}
    losses |= {(group.kind, group.name): list(scores[group.name].losses) for group in groups}
    found, interactions = output_changes(
        network.model, calibration, {key: some for key, some in losses.items() if some}, seed
    )
    own = {name: found["block", name] for name in names}
    if any(entry.score != "similarity" for entry in blocks):
        ranked = sorted(blocks, key=lambda entry: entry.damage)
        own = {entry.name: damage for entry, damage in zip(ranked, sorted(own.values()), strict=True)}
        rows = {key: row for key, row in interactions.rows.items() if key[0] != "block"}
        interactions = replace(interactions, rows=rows)
    weighed = tuple(replace(entry, damage=own[entry.name]) for entry in blocks)
    scaled = {}
    for group in groups:
        score, measured = scores[group.name], found.get((group.kind, group.name))
        expected = sum(score.damage[unit] for unit in score.order[: score.half])
        scaled[group.name] = score if measured is None or expected <= 0 else score.scaled(measured / expected)
    return weighed, scaled, interactions


def _describe_groups(
    groups: Sequence[UnitGroup],
    costs: CostModel,
    scores: Mapping[str, ChannelScore],
    correlations: Correlations,
    score: str,
) -> tuple[ChannelRedundancy, ...]:
    total = costs.total().macs
    values = correlations.values() if groups else {}
    described = []
    for group in groups:
        away = values[group.name].mean(0).abs().fill_diagonal_(-1)
        every_but_one = group.cut(range(1, group.size))
        of_group = scores[group.name]
        described.append(
            ChannelRedundancy(
                group,
                redundancy=of_group.redundancy,
                order=of_group.order,
                damage=of_group.damage,
                nearest=tuple(away.argmax(1).tolist()),
                share=1 - costs.after(every_but_one).macs / total,
                score=score,
            )
        )
    return tuple(described)
