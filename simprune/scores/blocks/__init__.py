"""How redundant each block is: one way to score per file.

A score is a function (view, **options) -> {block: redundancy in [0, 1]}, 1 for a block that can go first. To add one,
write a file with such a function and name it in `BLOCK_SCORES`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from simprune.core.names import did_you_mean
from simprune.scores.blocks._view import BlockScorer, View, as_redundancy
from simprune.scores.blocks.consensus import consensus
from simprune.scores.blocks.influence import block_influence
from simprune.scores.blocks.leave_one_out import leave_one_out
from simprune.scores.blocks.segments import clusters, segments
from simprune.scores.blocks.similarity import similarity
from simprune.scores.blocks.stream import Stream, observe
from simprune.scores.blocks.trend import trend
from simprune.scores.blocks.windows import windows


def greedy_leave_one_out(view: View, images: int = 128, repair: bool = True, steps: int | None = None):
    from simprune.tune.greedy_leave_one_out import greedy_leave_one_out

    return greedy_leave_one_out(view, images, repair, steps)


BLOCK_SCORES: dict[str, BlockScorer] = {
    "similarity": similarity,
    "block_influence": block_influence,
    "windows": windows,
    "leave_one_out": leave_one_out,
    "greedy_leave_one_out": greedy_leave_one_out,
    "segments": segments,
    "clusters": clusters,
    "trend": trend,
    "consensus": consensus,
}


BlockScore = str | Mapping[str, Any]


def name_of(score: BlockScore) -> str:
    """Name of a score given with or without options."""
    return block_scorer(score)[0]


def block_scorer(score: BlockScore) -> tuple[str, dict[str, Any]]:
    """Name and options of a score given as `"windows"` or `{"name": "windows", "n": 4}`; KeyError or ValueError."""
    options = {} if isinstance(score, str) else dict(score)
    name = score if isinstance(score, str) else options.pop("name", None)
    if name not in BLOCK_SCORES:
        raise KeyError(f"no block score named {name!r}; {did_you_mean(str(name), BLOCK_SCORES)}")
    known = [*inspect.signature(BLOCK_SCORES[name]).parameters][1:]
    for key in options:
        if key not in known:
            raise ValueError(f"block score {name} has no option {key!r}; {did_you_mean(key, known)}")
    return name, options


def score_blocks(view: View, score: BlockScore) -> dict[str, float]:
    """Redundancy of every block by a score."""
    name, options = block_scorer(score)
    return BLOCK_SCORES[name](view, **options)


__all__ = [
    "BLOCK_SCORES",
    "BlockScore",
    "Stream",
    "View",
    "as_redundancy",
    "block_scorer",
    "name_of",
    "observe",
    "score_blocks",
]
