"""Scores that read no data: from the weights alone, and the random control that every other score has to beat.

`magnitude` (Li et al., 2017) and `bn_scale` (Liu et al., 2017) are baselines, which do not compare channels with each
other. `geometric_median` (FPGM: He et al., 2019) finds filters in the middle of the others, which can be replaced by
them. `weight_cosine` finds channels whose weights have the same direction, which compute the same, up to a factor:
Srinivas and Babu, 2015, "Data-free parameter pruning for deep neural networks", compare weights by their distance; here
they are compared by their cosine.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._score import ChannelScore, by_damage, by_shares, by_similarity
from simprune.trace.network import Network
from simprune.trace.units import parts_of_unit_rows, unit_rows, weight_slices


@register("score", "magnitude", source="arXiv:1608.08710")
def magnitude(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: a channel's share of the squared norm of its producers' weights (mean over producers).

    The mean over producers extends the source to coupled groups. `calibration` is not read; time O(weights), and
    hardly any memory.
    """
    scores = {}
    for group in groups:
        sums = []
        for part in weight_slices(network.model, group.slices):
            rows = parts_of_unit_rows(network.model.get_parameter(part.tensor), part.dim, part.indices)
            sums.append(torch.cat([some.square().sum(1) for some in rows]))
        scores[group.name] = by_shares(sums)
    return scores


@register("score", "bn_scale", source="arXiv:1708.06519")
def bn_scale(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: a channel's share of the absolute BatchNorm scales of its group (mean over BatchNorms).

    In a group without an affine BatchNorm every scale counts as 1, so channels are removed in the order of their
    indices. `calibration` is not read; cost O(channels).
    """
    scores = {}
    for group in groups:
        scales = [
            unit_rows(network.model.get_parameter(part.tensor)[:, None], part.dim, part.indices).abs().sum(1)
            for part in group.slices
            if part.side == "out"
            and part.tensor.endswith(".weight")
            and isinstance(network.model.get_submodule(part.module), nn.modules.batchnorm._BatchNorm)
        ]
        scores[group.name] = by_shares(scales or [torch.ones(group.size, dtype=torch.float64)])
    return scores


@register("score", "geometric_median", source="arXiv:1811.00250")
def geometric_median(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: a channel's share of the distances between all filters of its group (mean over producers).

    For channel c the distances are |w_c - w_j| to all channels j, where w are the weights of a producer. `calibration`
    is not read. Time and memory O(channels^2) beyond the weights.
    """
    scores = {}
    for group in groups:
        parts = _produced(network.model, group)
        distances = [torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") for rows in parts]
        scores[group.name] = by_shares([distance.sum(1) for distance in distances])
    return scores


@register("score", "weight_cosine", source="arXiv:1507.06149")
def weight_cosine(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: (1 - cos^2) / channels, where cos is the greatest cosine with the weights of a remaining channel.

    Negative cosines count as 0. A channel's vector holds its weights in all producers, the weights of every producer
    scaled to the same norm; biases and normalisations are left out. A channel whose weights are all zero costs nothing.
    `calibration` is not read. O(channels^3) per group.
    """
    return {group.name: by_similarity(_cosines(_produced(network.model, group))) for group in groups}


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


def _produced(model: nn.Module, group: UnitGroup) -> list[Tensor]:
    """The weights whose outputs are the group's units, as one (units, features) matrix per weight."""
    parts = weight_slices(model, group.slices)
    return [unit_rows(model.get_parameter(part.tensor), part.dim, part.indices) for part in parts]


def _cosines(parts: Sequence[Tensor]) -> Tensor:
    """(units, units) cosines, negative ones as 0; 1 in the row of a unit that has no weights."""
    rows = torch.cat([rows / rows.norm().clamp(min=1e-300) for rows in parts], 1)
    norms = rows.norm(dim=1)
    alive = norms > 1e-12 * norms.max()
    unit = torch.where(alive[:, None], rows / norms.clamp(min=1e-300)[:, None], 0.0)
    return torch.where(alive[:, None], (unit @ unit.T).clamp(0, 1), 1.0)
