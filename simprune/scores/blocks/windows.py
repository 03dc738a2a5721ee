"""Angular distance over windows of consecutive blocks (Gromov et al., "The Unreasonable Ineffectiveness of the Deeper
Layers", 2024; PruneMe): d(l, n) = mean angle / pi between the stream before block l and after block l + n - 1.

They take the angle at the last token of a decoder; here it is the mean over all positions, which also suits encoders
and images.
"""

import numpy as np

from simprune.core.registry import register
from simprune.scores.blocks._context import BlockContext
from simprune.scores.blocks.stream import Chain


def distances(chain: Chain, n: int) -> np.ndarray:
    """d of every window of n blocks of a chain, by its first block; empty when the chain is shorter.

    0: the stream keeps its direction; 0.5: orthogonal; 1: opposite.
    """
    return np.diagonal(chain.angle, offset=n).copy()


@register("block_score", "windows")
def windows(context: BlockContext, *, n: int = 2) -> dict[str, float]:
    """1 - the distance per removed block of the best window of at most `n` blocks around a block."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"windows: n must be a whole number of blocks from 1; got {n!r}")
    scores: dict[str, float] = {}
    for chain in context.stream.chains:
        best = np.ones(len(chain.blocks))
        for length in range(1, min(n, len(chain.blocks)) + 1):
            for first, distance in enumerate(distances(chain, length)):
                window = slice(first, first + length)
                best[window] = np.minimum(best[window], distance / length)
        scores |= {block.name: float(1 - value) for block, value in zip(chain.blocks, best, strict=True)}
    return scores
