"""Correlations of a group's channels, at the input of every module that reads them."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from simprune.core.moments import Moments
from simprune.core.structures import UnitGroup
from simprune.trace.capture import Reading, Site, run
from simprune.trace.network import Network


class Correlations(Reading):
    """Reads what correlates in every group; memory O(readers x channels^2)."""

    def __init__(self, groups: Sequence[UnitGroup]) -> None:
        self.groups = groups
        self._readers: dict[str, list[tuple[str, Tensor]]] = {}
        for group in groups:
            for part in group.slices:
                if part.side == "in" and part.tensor.endswith("weight"):
                    indices = torch.tensor(part.inputs or part.indices)
                    self._readers.setdefault(part.module, []).append((group.name, indices))
        self._moments: dict[tuple[str, str], Moments] = {}

    @property
    def sites(self) -> list[Site]:
        return [Site(name, "positions", "input") for name in self._readers]

    def see(self, site: Site, value: Tensor) -> None:
        rows = site.rows(value)
        for group, indices in self._readers[site.module]:
            entries = rows[:, indices.to(rows.device)]  # (rows, channels, entries per channel)
            moments = Moments.of(entries.movedim(1, -1).flatten(0, 1))
            key = (group, site.module)
            self._moments[key] = self._moments[key].merge(moments) if key in self._moments else moments

    def values(self) -> Mapping[str, Tensor]:
        """(readers, C, C) correlations of every group, by its name; ValueError when nothing was read."""
        if self._readers and not self._moments:
            raise ValueError("calibration has no batches; give at least one")
        return {
            group.name: torch.stack(
                [_correlation(moments) for (name, _), moments in self._moments.items() if name == group.name]
            )
            for group in self.groups
        }


def reader_correlations(network: Network, calibration: Iterable, groups: Sequence[UnitGroup]) -> Mapping[str, Tensor]:
    """(readers, C, C) correlations of every group's channels. One forward pass over the batches."""
    reading = Correlations(groups)
    run(network.model, calibration, reading.sites, reading.see)
    return reading.values()


def _correlation(moments: Moments) -> Tensor:
    """Correlation matrix on the CPU; a dead channel has zero variance and correlates with nothing, itself included."""
    covariance = moments.covariance.cpu().clone()
    scale = covariance.diagonal().clamp(min=0).sqrt()
    alive = scale > 1e-12 * max(float(scale.max()), 1e-300)
    inverse = torch.where(alive, 1 / scale.where(alive, torch.ones_like(scale)), torch.zeros_like(scale))
    return covariance * torch.outer(inverse, inverse)
