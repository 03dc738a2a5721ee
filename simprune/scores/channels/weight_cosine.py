"""Weight cosine: channels whose weights have the same direction compute the same, up to a factor.

Srinivas and Babu, 2015, "Data-free parameter pruning for deep neural networks", compare weights by their distance; here
they are compared by their cosine.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import by_similarity, produced
from simprune.scores.channels._score import ChannelScore
from simprune.trace.network import Network


@register("score", "weight_cosine", source="arXiv:1507.06149")
def weight_cosine(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: (1 - cos^2) / channels, where cos is the greatest cosine with the weights of a remaining channel.

    Negative cosines count as 0. A channel's vector holds its weights in all producers, the weights of every producer
    scaled to the same norm; biases and normalisations are left out. A channel whose weights are all zero costs nothing.
    `calibration` is not read. O(channels^3) per group.
    """
    return {group.name: by_similarity(_cosines(produced(network.model, group))) for group in groups}


def _cosines(parts: Sequence[Tensor]) -> Tensor:
    """(units, units) cosines, negative ones as 0; 1 in the row of a unit that has no weights."""
    rows = torch.cat([rows / rows.norm().clamp(min=1e-300) for rows in parts], 1)
    norms = rows.norm(dim=1)
    alive = norms > 1e-12 * norms.max()
    unit = torch.where(alive[:, None], rows / norms.clamp(min=1e-300)[:, None], 0.0)
    return torch.where(alive[:, None], (unit @ unit.T).clamp(0, 1), 1.0)
