"""Several scores combined by rank (Pons et al., "Consensus layer pruning", 2024, with similarity measures)."""

from collections.abc import Sequence
from typing import Any

import scipy

from simprune.core.registry import bound, register
from simprune.scores.blocks._context import BlockContext


@register("block_score", "consensus", source="Pons et al. 2024")
def consensus(
    context: BlockContext, *, scores: Sequence[Any] = ("similarity", "block_influence", "windows")
) -> dict[str, float]:
    """Mean rank of a block over the named scores: 1 for a block that all of them would remove first, 0 for the last.

    `scores`: names, or mappings with `name` and options, of other scores. Cost: that of all of them.
    """
    if not scores or "consensus" in scores:
        raise ValueError("consensus: scores must name at least one other score")
    redundancies = [bound("block_score", score)(context) for score in scores]
    names = list(context.stream.ends)
    last = max(len(names) - 1, 1)
    ranks = [(scipy.stats.rankdata([redundancy[name] for name in names]) - 1) / last for redundancy in redundancies]
    return {name: float(sum(rank[index] for rank in ranks) / len(ranks)) for index, name in enumerate(names)}
