"""The redundancy of a network: its structures are searched for, scored, and weighed by what they cost the output."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from simprune.core import processes, registry
from simprune.core.batches import first_tensor
from simprune.core.checkpoint import Checkpoint
from simprune.core.cost import CostModel
from simprune.core.heap import give_back
from simprune.core.progress import step
from simprune.core.redundancy import (
    BLOCK_WHY,
    UNITS_WHY,
    BlockRedundancy,
    ChannelRedundancy,
    Redundancy,
)
from simprune.core.registry import Choice
from simprune.core.structures import Block, UnitGroup
from simprune.measures import Measure
from simprune.scores.blocks import BlockContext, observe
from simprune.scores.blocks.at_output import worse_at_output
from simprune.scores.channels import ReaderMoments
from simprune.scores.channels._score import nearest
from simprune.scores.experts import EXPERTS, SCORE, WHY, score_experts
from simprune.scores.output_changes import BlockLosses, Key, OutputChanges, OutputLoss, output_changes
from simprune.structures import check_structures, structure
from simprune.trace.capture import read
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.network import Network
from simprune.trace.precision import require_finite

OTHERS = "predictability"  # the score of groups that the chosen one leaves out


@dataclass(frozen=True)
class Estimate:
    """The redundancy of a network as plain data, and the context in which its blocks were scored, which is large.

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
    protects: Callable[[UnitGroup, CostModel], bool] | None = None,
) -> Estimate:
    """The removable structures of a network, and their scores on calibration batches.

    With the default scores the batches are walked twice: once to read the stream around blocks, once for the
    second-order cost of channels and the changes of the output without blocks. The inputs that are held out are walked
    once more for the changes of the output without channels, and all where that cost leaves groups out. Memory O(inputs
    x width) for the blocks and O(width^2) for the channels.

    Args:
        network: the original.
        calibration: batches that can be walked more than once.
        measure: similarity of the representations before and after blocks.
        structures: names of the kinds of structures that are searched for.
        score: of channels and other units, by name or as a mapping with `name` and options. A group that the score
            leaves out is scored by its predictability.
        block_score: of blocks, in the same way.
        damage: whether damages are measured as changes of the output, which only planners need, and which costs a
            backward pass. It needs a score that says what readers lose (its fact `output_losses`).
        checkpoint: where finished stages of the blocks are saved, and looked up.
        seed: of scores that draw at random.
        protects: whether a group of units stays in any plan, so that it need not be scored; None: none does.

    Returns:
        The redundancy, and the context in which blocks were scored.

    Raises:
        ValueError: for unknown structures or options, and when there are no batches.
        KeyError: for an unknown score.
    """
    kinds = check_structures(structures)
    score_part, _ = registry.read("score", score)
    block_part, _ = registry.read("block_score", block_score)
    with step("find structures and prove removals"):
        _require_numbers(network)
    blocks, groups, refusals = _find(network, kinds)
    give_back()
    if protects is not None:
        refusals += [(group.name, "it is protected") for group in groups if protects(group, network.costs)]
        groups = [group for group in groups if not protects(group, network.costs)]
    names = [block.name for block in blocks]
    weighed = damage and score_part.facts.get("output_losses", False)
    experts = [group for group in groups if group.kind == EXPERTS]
    readable = [group for group in groups if group.kind != EXPERTS]
    compared = [] if score_part.facts.get("nearest", False) else readable  # the score does not say who is most alike
    moments, block_losses = ReaderMoments(compared, apart=True, shared=True), BlockLosses(names if weighed else [])
    readings = [reading for reading in (moments, block_losses) if reading.sites]
    context, block_scores = None, dict[str, float]()
    if blocks:
        stream = observe(network, calibration, blocks, checkpoint, readings)
        context = BlockContext(network, calibration, stream, measure, checkpoint)
        with step("score blocks"):
            block_scores = _score_blocks(context, names, block_score, seed)
    elif readings:
        read(network.model, calibration, readings, network.axes)
    own = dict(moments.nearest())
    alike = {name: most for some in processes.gather(own) for name, most in some.items()}
    losses: dict[Key, tuple[OutputLoss, ...]] = {
        ("block", name, 0): (loss,) for name, loss in block_losses.losses().items()
    }
    of_blocks = OutputChanges(losses, network.axes)
    with step("score channels and heads"):
        along = ([of_blocks],) if weighed and score_part.facts.get("beside", False) else ()
        bound = registry.bound("score", score, seed=seed)
        scores = dict(bound(network, calibration, readable, *along)) if readable else {}
        parts = dict.fromkeys(scores, score_part)
        left_out = [group for group in readable if group.name not in scores]
        if left_out:
            scores |= registry.bound("score", OTHERS, seed=seed)(network, calibration, left_out)
            parts |= {group.name: registry.find("score", OTHERS) for group in left_out}
    of_experts = score_experts(network, calibration, experts) if experts else {}
    scores |= {name: expert.score for name, expert in of_experts.items()}
    damages, interactions = {name: 1 - value for name, value in block_scores.items()}, None
    if weighed:
        losses = {} if of_blocks.walk is not None else losses  # they have been measured on the way
        for group in groups:
            losses |= {(group.kind, group.name, units): loss for units, loss in scores[group.name].losses.items()}
        changes, interactions = output_changes(
            network.model, calibration, losses, seed, network.axes, network.weights, of_blocks
        )
        for group in groups:
            scored = scores[group.name]
            scores[group.name] = scored.costing(
                {units: changes[group.kind, group.name, units] for units in scored.losses}
            )
        measured = {name: changes["block", name, 0] for name in names}
        if block_part.facts.get("measured_damage", False):
            damages = worse_at_output(network, blocks, measured)
        else:
            # Blocks keep the order of their scores: the most redundant block gets the least of the measured damages,
            # the next one the second least, and so on. Such blocks do not interact, since the score already says how
            # much a block adds.
            damages = dict(zip(sorted(names, key=damages.__getitem__), sorted(measured.values()), strict=True))
            rows = {key: row for key, row in interactions.rows.items() if key[0] != "block"}
            interactions = replace(interactions, rows=rows)
    give_back()
    alike |= {name: scored.nearest for name, scored in scores.items() if scored.nearest}
    alike |= {name: nearest(expert.similarity) for name, expert in of_experts.items()}
    named = {name: (part.name, part.facts.get("why", UNITS_WHY)) for name, part in parts.items()}
    named |= dict.fromkeys(of_experts, (SCORE, WHY))
    macs = network.costs.total().macs
    redundancy = Redundancy(
        blocks=tuple(
            BlockRedundancy(
                block,
                redundancy=block_scores[block.name],
                share=1 - network.costs.after(dropped=[block.name]).macs / macs,
                damage=damages[block.name],
                score=block_part.name,
                wording=block_part.facts.get("why", BLOCK_WHY),
            )
            for block in blocks
        ),
        channels=tuple(
            ChannelRedundancy(
                group,
                redundancy=scores[group.name].redundancy,
                order=scores[group.name].order,
                damage=scores[group.name].damage,
                nearest=alike[group.name],
                share=1 - network.costs.after(group.cut(range(1, group.size))).macs / macs,
                score=named[group.name][0],
                wording=named[group.name][1],
            )
            for group in groups
        ),
        unprunable=tuple(refusals),
        similarity=None if context is None else context.matrix(names),
        measure=measure.id,
        costs=network.costs,
        fingerprint=network.fingerprint,
        inputs=network.description,
        interactions=interactions,
        points=None if context is None else context.points(),
    )
    return Estimate(redundancy, context)


def _require_numbers(network: Network) -> None:
    """ValueError, with the first layer that gives one, where an output of the network on the example holds nan."""
    if not any(value.isnan().any() for value in network.outputs.values()):
        return

    def look(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value = first_tensor(output)
        if value is not None and value.is_floating_point():
            require_finite(value, f"the output of {name}")

    leaves = [(name, module) for name, module in network.model.named_modules() if next(module.children(), None) is None]
    args, kwargs = network.example
    with eval_mode(network.model), torch.no_grad(), hooks(after=[(leaf, partial(look, name)) for name, leaf in leaves]):
        network.model(*args, **kwargs)
    for name, value in network.outputs.items():
        require_finite(value, f"the network's output {name}")


def _find(network: Network, kinds: Sequence[str]) -> tuple[list[Block], list[UnitGroup], list[tuple[str, str]]]:
    """Blocks, groups of units, and (name, reason) of what cannot be removed."""
    blocks: list[Block] = []
    groups: list[UnitGroup] = []
    refusals: list[tuple[str, str]] = []
    for kind in kinds:
        structures_of_kind, refused = structure(kind).find(network)
        first_chain = 1 + max((block.chain for block in blocks), default=-1)  # every kind numbers its chains from 0
        blocks += [replace(s, chain=s.chain + first_chain) for s in structures_of_kind if isinstance(s, Block)]
        groups += [s for s in structures_of_kind if isinstance(s, UnitGroup)]
        refusals += refused if structures_of_kind or refused else [(kind, structure(kind).absent)]
    return blocks, groups, refusals


def _score_blocks(context: BlockContext, names: Sequence[str], score: Choice, seed: int) -> dict[str, float]:
    """Redundancy of every block by name, in their order; looked up in the checkpoint, or saved there."""
    stored = None if context.checkpoint is None else context.checkpoint.load("scores")
    if stored is not None:
        return dict(zip(names, stored["scores"].tolist(), strict=True))
    scores = registry.bound("block_score", score, seed=seed)(context)
    scores = {name: scores[name] for name in names}
    if context.checkpoint is not None:
        context.checkpoint.save("scores", {"scores": torch.tensor([*scores.values()], dtype=torch.float64)})
    return scores
