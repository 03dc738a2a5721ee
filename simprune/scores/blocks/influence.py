"""Block influence (Men et al., "ShortGPT", 2024): BI = 1 - mean cosine of a block's input and output, per position."""

from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext


@register("block_score", "block_influence", source="Men et al. 2024, ShortGPT")
def block_influence(context: BlockContext) -> dict[str, float]:
    """Mean cosine of a block's input and output, position by position, clipped to [0, 1]: 1 - block influence."""
    return {
        block.name: min(max(float(chain.cosine[index, index + 1]), 0.0), 1.0)
        for chain in context.stream.chains
        for index, block in enumerate(chain.blocks)
    }
