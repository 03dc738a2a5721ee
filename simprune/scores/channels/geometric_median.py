"""Geometric median (FPGM: He et al., 2019): filters in the middle of the others can be replaced by them."""

from collections.abc import Iterable, Sequence

import torch

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import by_damage, produced, share
from simprune.scores.channels._score import ChannelScore
from simprune.trace.network import Network


@register("score", "geometric_median", source="arXiv:1811.00250")
def geometric_median(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: a channel's share of the distances between all filters of its group (mean over producers).

    For channel c the distances are |w_c - w_j| to all channels j, where w are the weights of a producer. `calibration`
    is not read. Time and memory O(channels^2) beyond the weights.
    """
    scores = {}
    for group in groups:
        distances = [
            torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
            for rows in produced(network.model, group)
        ]
        scores[group.name] = by_damage(torch.stack([share(sums) for sums in distances]).mean(0))
    return scores
