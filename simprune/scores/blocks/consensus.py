"""Several scores agree by rank (Pons et al., "Consensus layer pruning", 2024, with similarity measures)."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import rankdata

from simprune.scores.blocks._view import View


def consensus(view: View, scores: Sequence[Any] = ("similarity", "block_influence", "windows")) -> dict[str, float]:
    """Mean rank over the named scores, 1 for a block that every one of them would remove first."""
    from simprune.scores.blocks import score_blocks

    if not scores or "consensus" in scores:
        raise ValueError("consensus: scores must name at least one other score")
    found = [score_blocks(view, score) for score in scores]
    names = list(view.stream.ends)
    last = max(len(names) - 1, 1)
    ranks = [(rankdata([each[name] for name in names]) - 1) / last for each in found]
    return {name: float(sum(rank[place] for rank in ranks) / len(ranks)) for place, name in enumerate(names)}
