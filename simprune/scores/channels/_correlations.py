"""Correlations of a group's channels, at the input of every module that reads them."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from simprune.core.moments import Moments
from simprune.core.structures import UnitGroup
from simprune.scores.channels._parts import ReaderMoments
from simprune.trace.capture import read
from simprune.trace.network import Network


class Correlations(ReaderMoments):
    """Reads the correlations of every group's units in a walk over the batches; memory O(readers x channels^2)."""

    def __init__(self, groups: Sequence[UnitGroup]) -> None:
        super().__init__(groups, "positions", apart=True)
        self.groups = groups

    def values(self) -> Mapping[str, Tensor]:
        """(readers, C, C) correlations of every group, by its name; ValueError when nothing was read."""
        return {group.name: torch.stack([_correlation(moments) for moments in self.of(group)]) for group in self.groups}


def reader_correlations(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> Mapping[str, Tensor]:
    """(readers, C, C) correlations of every group's C channels, by the group's name. One pass over the batches."""
    reading = Correlations(groups)
    read(network.model, calibration, [reading])
    return reading.values()


def _correlation(moments: Moments) -> Tensor:
    """Correlation matrix on the CPU; a dead channel has zero variance and correlates with nothing, itself included."""
    covariance = moments.covariance.cpu().clone()
    scale = covariance.diagonal().clamp(min=0).sqrt()
    alive = scale > 1e-12 * max(float(scale.max()), 1e-300)
    inverse = torch.where(alive, 1 / scale.where(alive, torch.ones_like(scale)), torch.zeros_like(scale))
    return covariance * torch.outer(inverse, inverse)
