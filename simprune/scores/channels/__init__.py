"""How dispensable every channel of a group is: one way to score per file.

A score is a registered function (network, calibration, groups, *, options) -> {name of the group: ChannelScore}. It may
leave out groups that it cannot score. A score may register two facts: `why`, the words in which a plan gives its
reasons (a format with the fields least, mean and score), and `output_losses=True`, when its results have `losses`, from
which the change of the network's output is measured.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from simprune.core.registry import Choice, bound
from simprune.core.structures import UnitGroup
from simprune.scores.channels._moments import ReaderMoments
from simprune.scores.channels._score import ChannelScore, by_unexplained
from simprune.scores.channels.correlation import eliminate
from simprune.trace.network import Network

__all__ = ["ChannelScore", "ReaderMoments", "score_channels"]


def score_channels(
    network: Network,
    calibration: Iterable,
    groups: Sequence[UnitGroup],
    score: Choice,
    seed: int,
    correlations: Mapping[str, Tensor],
) -> dict[str, ChannelScore]:
    """Scores of all groups; a group that the score leaves out is scored by its predictability.

    Args:
        network: the original.
        calibration: batches that can be walked more than once.
        groups: groups of channels or other units.
        score: its name, or a mapping with `name` and options.
        seed: of scores that draw at random.
        correlations: (readers, C, C) of the C units of every group, at the inputs of the modules that read them.

    Returns:
        The score of every group by the group's name.
    """
    scores = dict(bound("score", score, seed=seed)(network, calibration, groups))
    left_out = [group.name for group in groups if group.name not in scores]
    return scores | {name: by_unexplained(*eliminate(correlations[name])) for name in left_out}
