"""How dispensable every channel of a group is: one way to score per file.

A score is a registered function (network, calibration, groups, *, options) -> {name of the group: ChannelScore}. It may
leave out groups that it cannot score. A score may register facts: `why`, the words in which a plan gives its reasons (a
format with the fields least, mean and score); `output_losses=True`, when its results have `losses`, from which the
change of the network's output is measured; `nearest=True`, when they say which channels are most alike;
`beside=True`, when it propagates directions of the output back through all batches and takes other watchers along
(`simprune.trace.sensitivity`), which it gets as a fourth argument; `products=True`, when it needs the memory that
`require_memory` says.
"""

from simprune.scores.channels._memory import refuse_wide
from simprune.scores.channels._moments import ReaderMoments
from simprune.scores.channels._score import ChannelScore
from simprune.scores.channels.correlation import by_prediction

__all__ = ["ChannelScore", "ReaderMoments", "by_prediction", "refuse_wide"]
