"""How redundant every block is: one way to score per file.

A score is a registered function (context, *, options) -> {block: redundancy in [0, 1]}; the block with the highest
redundancy is removed first. A score may register two facts: `why`, the words in which a plan gives its reasons (a
format with the fields redundancy, score and measure), and `measured_damage=True`, when the damage of a block is the
measured change of the output, whatever its score; otherwise the measured damages follow the order of the scores. Scores
that try removals on the network are in `simprune.tune`.
"""

from simprune.scores.blocks._context import BlockContext, as_redundancy
from simprune.scores.blocks.stream import Stream, observe

__all__ = ["BlockContext", "Stream", "as_redundancy", "observe"]
