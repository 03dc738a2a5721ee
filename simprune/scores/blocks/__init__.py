"""How redundant every block is: one way to score per file.

A score is a registered function (context, *, options) -> {block: redundancy in [0, 1]}; the block with the highest
redundancy is removed first. A score may register the fact `why`, the words in which a plan gives its reasons (a format
with the fields redundancy, score and measure). Scores that try removals on the network are in `simprune.tune`.
"""

from simprune.scores.blocks._context import BlockContext, as_redundancy
from simprune.scores.blocks.stream import Stream, observe

__all__ = ["BlockContext", "Stream", "as_redundancy", "observe"]
