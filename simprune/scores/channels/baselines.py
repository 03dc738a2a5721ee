"""Baselines that know nothing of redundancy: weights, BatchNorm scales, chance. What others have to beat."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import by_damage, produced, share
from simprune.scores.channels._score import Score
from simprune.trace.units import unit_rows


def magnitude(model: nn.Module, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, Score]:
    """Damage: a channel's share of the squared norm of its producers' weights (mean over producers).

    Source: Li et al., 2017, arXiv:1608.08710, for coupled groups. `calibration` is not read; O(weights).
    """
    scores = {}
    for group in groups:
        shares = [share(rows.square().sum(1)) for rows in produced(model, group)]
        scores[group.name] = by_damage(torch.stack(shares).mean(0))
    return scores


def bn_scale(model: nn.Module, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, Score]:
    """Damage: a channel's share of the absolute BatchNorm scales of its group (mean over BatchNorms).

    Source: Liu et al., 2017, arXiv:1708.06519. Without an affine BatchNorm every scale is 1, so channels go in their
    own order. `calibration` is not read; O(channels).
    """
    return {group.name: by_damage(_scales(model, group)) for group in groups}


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


def random(model: nn.Module, calibration: Iterable, groups: Sequence[UnitGroup], seed: int = 0) -> dict[str, Score]:
    """Damage: uniform in [0, 1) over the number of channels, from `seed`; the same for the same groups.

    `calibration` is not read.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: by_damage(torch.rand(group.size, generator=generator, dtype=torch.float64) / group.size)
        for group in groups
    }
