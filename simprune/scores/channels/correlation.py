"""Pairwise correlation: a channel is as redundant as its strongest correlation with a channel that remains."""

from collections.abc import Iterable, Sequence

import torch

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._correlations import reader_correlations
from simprune.scores.channels._parts import by_similarity
from simprune.scores.channels._score import ChannelScore
from simprune.trace.network import Network


@register("score", "correlation")
def correlation(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: (1 - r^2) / channels, where r is the strongest absolute correlation with a remaining channel.

    The unit is that of `predictability`, but a single channel replaces the removed one, not a combination of all. r is
    the mean over the inputs of the readers. A constant channel counts as r = 1, since its removal loses nothing. One
    pass over the batches; memory O(readers x channels^2), time O(channels^3) per group.
    """
    scores = {}
    for name, correlations in reader_correlations(network, calibration, groups).items():
        alive = correlations.diagonal(dim1=1, dim2=2)[:, :, None] > 0.5
        similarity = torch.where(alive, correlations.abs().clamp(max=1), 1.0).mean(0)
        scores[name] = by_similarity(similarity)
    return scores
