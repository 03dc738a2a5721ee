"""Similarity of a block's input and output, by any measure."""

from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext


@register("block_score", "similarity", why="its output is {redundancy:.3f} similar to its input ({measure})")
def similarity(context: BlockContext) -> dict[str, float]:
    """Similarity of a block's input and output by the measure of the analysis, pooled over positions.

    It is 1 for a block that changes nothing that the measure sees. No further pass over the batches.
    """
    return {name: context.similarity(*ends) for name, ends in context.stream.ends.items()}
