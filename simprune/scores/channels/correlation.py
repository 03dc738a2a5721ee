"""Scores from correlations: how much of a channel do other channels of its group explain, one of them or all?"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from simprune.core.registry import register
from simprune.core.structures import UnitGroup
from simprune.scores.channels._moments import ReaderMoments
from simprune.scores.channels._score import ChannelScore, by_similarity, by_unexplained, nearest
from simprune.trace.capture import read
from simprune.trace.network import Network

RIDGE = 1e-4  # of a channel's unit variance: keeps exact duplicates solvable
TIE = 1e-6  # share by which two channels may differ and count as equal: the first goes, not the one rounding prefers


@register(
    "score",
    "predictability",
    why="the others predict {least:.1%} or more (mean {mean:.1%}) of the variance of each",
    nearest=True,
)
def predictability(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: the share of a channel's variance that the remaining channels cannot predict linearly, over all channels.

    Channels are removed by backward elimination on the correlations at the inputs of the readers. One pass over the
    batches; memory O(readers x channels^2), time O(readers x channels^3) per group.
    """
    moments = ReaderMoments(groups, apart=True)
    read(network.model, calibration, [moments], network.axes)
    return {name: by_prediction(correlations) for name, correlations in moments.correlations()}


@register("score", "correlation", nearest=True)
def correlation(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> dict[str, ChannelScore]:
    """Damage: (1 - r^2) / channels, where r is the strongest absolute correlation with a remaining channel.

    The unit is that of `predictability`, but a single channel replaces the removed one, not a combination of all. r is
    the mean over the inputs of the readers. A constant channel counts as r = 1, since its removal loses nothing. One
    pass over the batches; memory O(readers x channels^2), time O(channels^3) per group.
    """
    moments = ReaderMoments(groups, apart=True)
    read(network.model, calibration, [moments], network.axes)
    scores = {}
    for name, correlations in moments.correlations():
        alive = correlations.diagonal(dim1=1, dim2=2)[:, :, None] > 0.5
        score = by_similarity(torch.where(alive, correlations.abs().clamp(max=1), 1.0).mean(0))
        scores[name] = replace(score, nearest=nearest(correlations.mean(0).abs()))
    return scores


def by_prediction(correlations: Tensor) -> ChannelScore:
    """The score of one group by its predictability, from its (readers, C, C) correlations."""
    return replace(by_unexplained(*eliminate(correlations)), nearest=nearest(correlations.mean(0).abs()))


def eliminate(correlations: Tensor) -> tuple[list[int], Tensor]:
    """Backward elimination: remove again and again the channel that the remaining ones predict best.

    Args:
        correlations: (readers, C, C).

    Returns:
        The order of removal, the last channel included, and (C,) the share of a channel's variance that was not
        explained when it was removed: the mean over readers, 0 for a dead channel, 1 for the last one.

    Cost O(readers x C^3).

    >>> order, unexplained = eliminate(torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]))
    >>> order[0] in (0, 1), bool(unexplained[order[0]] < 0.01)
    (True, True)
    """
    width = correlations.shape[-1]
    alive = correlations.diagonal(dim1=1, dim2=2) > 0.5  # (readers, C)
    ridged = correlations.double() + torch.diag_embed(torch.where(alive, RIDGE, 1.0).double())
    precision = torch.linalg.inv(ridged)
    unexplained = torch.ones(width, dtype=torch.float64)
    remaining = torch.ones(width, dtype=torch.bool)
    order: list[int] = []
    for _ in range(width - 1):
        share = torch.where(alive, 1 / precision.diagonal(dim1=1, dim2=2), 0.0).mean(0)
        share[~remaining] = float("inf")
        channel = int((share <= share.min() * (1 + TIE)).nonzero()[0, 0])  # two that are left are always equal
        unexplained[channel] = share[channel]
        remaining[channel] = False
        order.append(channel)
        column = precision[:, :, channel].clone()
        precision -= column[:, :, None] * column[:, None, :] / column[:, channel, None, None]
        precision[:, channel, channel] = 1.0  # of a removed channel, so that the division above stays defined
    return [*order, int(remaining.nonzero()[0, 0])], unexplained
