"""Weight cosine: channels whose producers' weights point the same way compute the same, up to a factor.

Srinivas and Babu, 2015, "Data-free parameter pruning for deep neural networks", arXiv:1507.06149; here by direction.
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
    """Damage: (1 - cos^2) / channels, cos the greatest cosine to a channel still there; negative ones count as 0.

    The weights of all producers side by side, each scaled to the same total; biases and normalisations are left out.
    A channel without weights costs nothing. Data-free: `calibration` is not read. O(channels^3) per group.
    """
    return {group.name: by_similarity(_cosines(produced(network.model, group))) for group in groups}


def _cosines(parts: Sequence[Tensor]) -> Tensor:
    """(units, units) cosines, negative ones as 0; 1 in the row of a unit that has no weights."""
    rows = torch.cat([rows / rows.norm().clamp(min=1e-300) for rows in parts], 1)
    norms = rows.norm(dim=1)
    alive = norms > 1e-12 * norms.max()
    unit = torch.where(alive[:, None], rows / norms.clamp(min=1e-300)[:, None], 0.0)
    return torch.where(alive[:, None], (unit @ unit.T).clamp(0, 1), 1.0)
