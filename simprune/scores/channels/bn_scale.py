"""Scales of BatchNorm (Liu et al., 2017): a baseline, which does not compare channels with each other."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import by_damage, share
from simprune.scores.channels._score import ChannelScore
from simprune.trace.network import Network
from simprune.trace.units import unit_rows


@register("score", "bn_scale", source="arXiv:1708.06519")
def bn_scale(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: a channel's share of the absolute BatchNorm scales of its group (mean over BatchNorms).

    In a group without an affine BatchNorm every scale counts as 1, so channels are removed in the order of their
    indices. `calibration` is not read; cost O(channels).
    """
    return {group.name: by_damage(_scales(network.model, group)) for group in groups}


def _scales(model: nn.Module, group: UnitGroup) -> Tensor:
    parts = [
        part
        for part in group.slices
        if part.side == "out"
        and part.tensor.endswith(".weight")
        and isinstance(model.get_submodule(part.module), nn.modules.batchnorm._BatchNorm)
    ]
    rows = [unit_rows(model.get_parameter(part.tensor)[:, None], part.dim, part.indices) for part in parts]
    shares = [share(scale.abs().sum(1)) for scale in rows] or [share(torch.ones(group.size, dtype=torch.float64))]
    return torch.stack(shares).mean(0)
