"""From similarity to redundancy: how well each block's input, and each channel's neighbours, can stand in for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from simprune.core.batches import checked
from simprune.core.cost import CostModel, Example
from simprune.core.example import describe, example_of
from simprune.core.plan import fingerprint
from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Interactions, Redundancy
from simprune.core.store import Kept
from simprune.core.structures import Block, ChannelGroup
from simprune.measures import Measure
from simprune.scores.block_losses import block_losses
from simprune.scores.blocks import BlockScore, View, block_scorer, name_of, observe, score_blocks
from simprune.scores.channels import Score, scorer
from simprune.scores.channels.predictability import reader_correlations
from simprune.scores.output_changes import output_changes
from simprune.structures import FINDERS
from simprune.trace.cost import cost_model


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

    Blocks: `block_score`, one of `simprune.scores.blocks`, by name or as a mapping with `name` and its options. Channels:
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
