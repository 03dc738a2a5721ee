"""How redundant every block is: one way to score per file.

A score is a registered function (context, *, options) -> {block: redundancy in [0, 1]}, 1 for a block that can go
first. Scores that try removals on the network stand in `simprune.tune`.
"""

from simprune.scores.blocks._context import BlockContext, as_redundancy
from simprune.scores.blocks.stream import Stream, observe

__all__ = ["BlockContext", "Stream", "as_redundancy", "observe"]
