"""Magnitude of weights (Li et al., 2017): a baseline, which does not compare channels with each other."""

from collections.abc import Iterable, Sequence

import torch

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import by_damage, produced, share
from simprune.scores.channels._score import ChannelScore
from simprune.trace.network import Network


@register("score", "magnitude", source="arXiv:1608.08710")
def magnitude(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: a channel's share of the squared norm of its producers' weights (mean over producers).

    The mean over producers extends the source to coupled groups. `calibration` is not read; cost O(weights).
    """
    scores = {}
    for group in groups:
        shares = [share(rows.square().sum(1)) for rows in produced(network.model, group)]
        scores[group.name] = by_damage(torch.stack(shares).mean(0))
    return scores
