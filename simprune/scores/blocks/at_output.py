"""A look at the output of a language model: how far its answers move when a block goes and nothing is repaired.

What a block adds to the stream, and the linear part of the way from there to the output, underrate the first and last
blocks of trained language models: later blocks rest on the first ones in ways that are far from linear. In SmolLM2-135M
layers 0 and 11 change the answers twenty times as much as their neighbours, whatever else is measured of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from simprune.core.batches import call_all, output_mask_of
from simprune.core.divergence import divergences
from simprune.core.example import as_batch
from simprune.core.structures import Block
from simprune.core.tokens import speaks
from simprune.trace.bypass import Bypass, without
from simprune.trace.context import evaluation, uncached
from simprune.trace.network import Network


def worse_at_output(network: Network, blocks: Sequence[Block], damages: Mapping[str, float]) -> dict[str, float]:
    """The damages of blocks, raised for those that a language model's answers miss more than others.

    A block counts by the worse of two: its damage, and the divergence of the answers without it, in units in which the
    median block has the same of both. Cost: one forward pass of the network's example, two inputs, per block.

    Args:
        network: the original.
        blocks: that were scored.
        damages: by name of the block.

    Returns:
        Damages by name; of a network that is no language model as they were.
    """
    moved = divergences_without(network, blocks)
    if not moved:
        return dict(damages)
    unit = float(np.median([damages[name] for name in moved])) / max(float(np.median([*moved.values()])), 1e-300)
    return {name: max(value, unit * moved.get(name, 0.0)) for name, value in damages.items()}


def divergences_without(network: Network, blocks: Sequence[Block]) -> dict[str, float]:
    """Nats per token by which the answers to the example move without each block; none without scores of tokens."""
    batch, output = as_batch(network.example), network.output
    if output is None or len(network.outputs) > 1 or not speaks(network.model, batch, output):
        return {}
    mask = output_mask_of(batch)
    at = ... if mask is None or mask.shape != output.shape[:2] else mask.to(output.device)
    moved: dict[str, float] = {}
    with evaluation(network.model), uncached(network.model), torch.no_grad():
        for block in blocks:
            bypass = Bypass(network.visits[block.name].layout(), block.replace == "zero")
            with without(network.model, block.name, bypass):
                answers = next(iter(call_all(network.model, batch).values()))
            moved[block.name] = float(divergences(output[at].flatten(0, -2), answers[at].flatten(0, -2)).mean())
    return moved
