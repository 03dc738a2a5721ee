"""Scores by how much a block changes the stream: by similarity, by cosine, by angle, or by a statistic along depth."""

import numpy as np

from simprune import measures
from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext

FALL = 0.1  # a fall of a statistic counts a tenth of a rise, so that a block that changes nothing at all comes first


@register(
    "block_score",
    "similarity",
    why="its output is {redundancy:.3f} similar to its input ({measure})",
    measured_damage=True,
)
def similarity(context: BlockContext) -> dict[str, float]:
    """Similarity of a block's input and output by the measure of the analysis, pooled over positions.

    It is 1 for a block that changes nothing that the measure sees. No further pass over the batches.
    """
    return {name: context.similarity(*ends) for name, ends in context.stream.ends.items()}


@register("block_score", "block_influence", source="Men et al. 2024, ShortGPT")
def block_influence(context: BlockContext) -> dict[str, float]:
    """Mean cosine of a block's input and output, position by position, clipped to [0, 1]: 1 - block influence."""
    return {
        block.name: min(max(float(chain.cosine[index, index + 1]), 0.0), 1.0)
        for chain in context.stream.chains
        for index, block in enumerate(chain.blocks)
    }


@register("block_score", "windows")
def windows(context: BlockContext, *, n: int = 2) -> dict[str, float]:
    """1 - the least distance per block over all windows of at most `n` consecutive blocks that hold a block.

    The distance is the angular one of Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", 2024, and
    of PruneMe: d(l, n) = mean angle / pi between the stream before block l and after block l + n - 1. They take the
    angle at the last token of a decoder; here it is the mean over all positions, which also suits encoders and images.
    """
    if n < 1:
        raise ValueError(f"windows: n must be a whole number of blocks from 1; got {n!r}")
    scores: dict[str, float] = {}
    for chain in context.stream.chains:
        best = np.ones(len(chain.blocks))
        for length in range(1, min(n, len(chain.blocks)) + 1):
            for first, distance in enumerate(chain.distances(length)):
                window = slice(first, first + length)
                best[window] = np.minimum(best[window], distance / length)
        scores |= {block.name: float(1 - value) for block, value in zip(chain.blocks, best, strict=True)}
    return scores


@register("block_score", "trend", source="Lu et al. 2022 and 2023")
def trend(context: BlockContext, *, statistic: str = "graph_modularity") -> dict[str, float]:
    """1 - the rise of a statistic from a block's input to its output, as a share of the largest rise.

    A fall counts as a tenth of a rise of the same size. In the graph that connects every input with its nearest
    neighbours, modularity says how well the classes are separated; blocks that do not raise it do not separate the
    classes any further. `statistic`: id of a descriptive measure; the graph statistics need labels. Raises ValueError
    when it needs labels that the batches do not have.
    """
    measure = measures.get(statistic)
    labels = context.stream.labels_for(measure)
    if measure.needs_labels and labels is None:
        raise ValueError(f"trend: {statistic} needs labels, one integer per input; the calibration batches have none")
    level = {point: measure.describe(rows, labels) for point, rows in context.stream.rows.items()}
    rise = {name: level[after] - level[before] for name, (before, after) in context.stream.ends.items()}
    change = {name: value if value >= 0 else -FALL * value for name, value in rise.items()}
    largest = max([value for value in change.values() if value == value] or [0.0]) or 1.0
    return {name: 0.0 if value != value else 1 - value / largest for name, value in change.items()}
