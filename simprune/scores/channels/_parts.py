"""What scores share: the weights that produce a group's units, the moments that its readers see, and ways to rank."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from simprune.core.moments import Moments
from simprune.core.structures import UnitGroup
from simprune.scores.channels._score import ChannelScore
from simprune.trace.capture import Reading, read
from simprune.trace.network import Network
from simprune.trace.sites import Layout, Site
from simprune.trace.units import unit_rows, weight_slices


def produced(model: nn.Module, group: UnitGroup) -> list[Tensor]:
    """The weights whose outputs are the group's units, as one (units, features) matrix per weight."""
    return [
        unit_rows(model.get_parameter(part.tensor), part.dim, part.indices)
        for part in weight_slices(model, group.slices)
    ]


class ReaderMoments(Reading):
    """Reads the moments of every group's units at the input of every module that reads them.

    Args:
        groups: groups of units.
        layout: "positions" for one row per position, "pool" for the mean over positions.
        apart: whether the entries of a unit, of which a flattened map has several, count as samples of one number.
            Memory is O(readers x units^2) then, else O(readers x (units x entries)^2).
    """

    def __init__(self, groups: Sequence[UnitGroup], layout: Layout = "positions", apart: bool = False) -> None:
        self.layout: Layout = layout
        self.apart = apart
        self._readers: dict[str, list[tuple[str, Tensor]]] = {}
        for group in groups:
            for part in group.slices:
                if part.side == "in" and part.tensor.endswith("weight"):
                    units = torch.tensor(part.inputs or part.indices)  # (units, entries)
                    self._readers.setdefault(part.module, []).append((group.name, units))
        self._moments: dict[tuple[str, str, int], Moments] = {}

    @property
    def sites(self) -> list[Site]:
        return [Site(name, self.layout, "input") for name in self._readers]

    def see(self, site: Site, value: Tensor) -> None:
        rows = site.rows(value)
        for number, (group, units) in enumerate(self._readers[site.module]):
            units = units.to(rows.device)
            columns = rows[:, units].movedim(1, -1).flatten(0, 1) if self.apart else rows[:, units.flatten()]
            key = (group, site.module, 0 if self.apart else number)
            moments = Moments.of(columns)
            self._moments[key] = self._moments[key].merge(moments) if key in self._moments else moments

    def of(self, group: UnitGroup) -> list[Moments]:
        """Moments of one group, one entry per reader; ValueError when no batch was read."""
        if self._readers and not self._moments:
            raise ValueError("calibration has no batches; give at least one")
        return [moments for key, moments in self._moments.items() if key[0] == group.name]


def reader_moments(
    network: Network, calibration: Iterable, groups: Sequence[UnitGroup], layout: Layout
) -> dict[str, list[Moments]]:
    """Moments of the entries of every group, unit after unit, by the group's name. One pass over the batches."""
    reading = ReaderMoments(groups, layout)
    read(network.model, calibration, [reading])
    return {group.name: reading.of(group) for group in groups}


def share(values: Tensor) -> Tensor:
    """The share of every value in their sum; equal shares when all are zero.

    >>> share(torch.tensor([1.0, 3.0]))
    tensor([0.2500, 0.7500])
    """
    total = values.sum()
    return values / total if total > 0 else torch.full_like(values, 1 / len(values))


def by_damage(damage: Tensor) -> ChannelScore:
    """The score of units by their damage alone: the least damage is removed first.

    Redundancy is 1 - damage / the greatest damage of the group.

    >>> by_damage(torch.tensor([0.5, 0.0, 0.25]))
    ChannelScore(order=(1, 2, 0), redundancy=(0.0, 1.0, 0.5), damage=(0.5, 0.0, 0.25))
    """
    damage = damage.clamp(min=0)
    redundancy = 1 - damage / damage.max() if damage.max() > 0 else torch.ones_like(damage)
    return ChannelScore(tuple(damage.argsort(stable=True).tolist()), tuple(redundancy.tolist()), tuple(damage.tolist()))


def by_similarity(similarity: Tensor) -> ChannelScore:
    """The score of units by pairs: again and again the unit is removed that a remaining one resembles most.

    Damage is (1 - s^2) / units, where s is the similarity of the removed unit to the remaining unit that resembles it
    most. Of several equally similar units the unit is removed that resembles all remaining ones most. No unit remains
    to replace the last one, so its s is 0; a dead unit, which is 1 similar to all, needs no replacement. O(units^3).

    Args:
        similarity: (units, units) in [0, 1]; entry (i, j) says how well unit j replaces unit i.

    >>> by_similarity(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.6], [0.0, 0.6, 1.0]])).order
    (1, 0, 2)
    """
    ties = similarity.double().clone().fill_diagonal_(0)
    size = len(ties)
    needless = (ties.sum(1) + 1 > size - 1e-9) if size > 1 else torch.zeros(1, dtype=torch.bool)
    remaining = torch.ones(size, dtype=torch.bool)
    closest = needless.double()  # similarity of a unit to its replacement, when it is removed
    order: list[int] = []
    while len(order) < size - 1:
        best = ties.max(1).values.masked_fill(~remaining, -1)
        equal = best >= best.max() - 1e-9
        unit = int(ties.sum(1).masked_fill(~equal, -1).argmax())
        closest[unit] = best[unit]
        remaining[unit] = False
        ties[:, unit] = 0
        order.append(unit)
    order.append(int(remaining.nonzero()[0, 0]))
    unexplained = (1 - closest.square()).clamp(0, 1)
    return ChannelScore(tuple(order), tuple((1 - unexplained).tolist()), tuple((unexplained / size).tolist()))
