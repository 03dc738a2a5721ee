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
    """(windows,) distances d of all windows of n consecutive blocks of a chain, by their first block.

    d is 0 where the window keeps the direction of the stream, 0.5 where input and output are orthogonal, and 1 where
    they are opposite. A chain of fewer than n blocks has no windows.
    """
    return np.diagonal(chain.angle, offset=n).copy()


@register("block_score", "windows")
def windows(context: BlockContext, *, n: int = 2) -> dict[str, float]:
    """1 - the least distance per block over all windows of at most `n` consecutive blocks that hold a block."""
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
