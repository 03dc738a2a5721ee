"""Similarity of what goes into a block and what comes out, by any measure."""

from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext


@register("block_score", "similarity", why="its output is {redundancy:.3f} similar to its input ({measure})")
def similarity(context: BlockContext) -> dict[str, float]:
    """1: the block changes nothing that the measure sees. Rows are pooled over positions."""
    return {name: context.similarity(*ends) for name, ends in context.stream.ends.items()}
