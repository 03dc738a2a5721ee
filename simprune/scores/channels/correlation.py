"""Correlation clusters: a channel is redundant by its strongest absolute correlation to one that is kept."""

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
    """Damage: (1 - r^2) / channels, r the strongest |correlation| to a channel still there; the unit of predictability.

    The pairwise limit of `predictability`: one channel stands in, not a combination. r is the mean over the readers'
    inputs; where a channel is constant nothing is lost and it counts as 1. One forward pass; memory
    O(readers x channels^2), O(channels^3) per group.
    """
    scores = {}
    for name, correlations in reader_correlations(network, calibration, groups).items():
        alive = correlations.diagonal(dim1=1, dim2=2)[:, :, None] > 0.5
        ties = torch.where(alive, correlations.abs().clamp(max=1), 1.0).mean(0)
        scores[name] = by_similarity(ties)
    return scores
