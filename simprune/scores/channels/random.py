"""Random damages: the control that every other score has to beat."""

from collections.abc import Iterable, Sequence

import torch

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import by_damage
from simprune.scores.channels._score import ChannelScore
from simprune.trace.network import Network


@register("score", "random")
def random(
    network: Network, calibration: Iterable, groups: Sequence[UnitGroup], *, seed: int = 0
) -> dict[str, ChannelScore]:
    """Damage: a random number in [0, 1), divided by the number of channels.

    The same groups and `seed` give the same numbers. `calibration` is not read.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: by_damage(torch.rand(group.size, generator=generator, dtype=torch.float64) / group.size)
        for group in groups
    }
