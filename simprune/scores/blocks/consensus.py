"""Several scores agree by rank (Pons et al., "Consensus layer pruning", 2024, with similarity measures)."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import rankdata

from simprune.core.registry import bound, register
from simprune.scores.blocks._context import BlockContext


@register("block_score", "consensus")
def consensus(
    context: BlockContext, *, scores: Sequence[Any] = ("similarity", "block_influence", "windows")
) -> dict[str, float]:
    """Mean rank over the named scores, 1 for a block that every one of them would remove first."""
    if not scores or "consensus" in scores:
        raise ValueError("consensus: scores must name at least one other score")
    found = [bound("block_score", score)(context) for score in scores]
    names = list(context.stream.ends)
    last = max(len(names) - 1, 1)
    ranks = [(rankdata([each[name] for name in names]) - 1) / last for each in found]
    return {name: float(sum(rank[place] for rank in ranks) / len(ranks)) for place, name in enumerate(names)}
