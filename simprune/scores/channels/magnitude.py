"""Magnitude of weights: a baseline that knows nothing of redundancy."""

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

    Source: Li et al., 2017, arXiv:1608.08710, for coupled groups. `calibration` is not read; O(weights).
    """
    scores = {}
    for group in groups:
        shares = [share(rows.square().sum(1)) for rows in produced(network.model, group)]
        scores[group.name] = by_damage(torch.stack(shares).mean(0))
    return scores
