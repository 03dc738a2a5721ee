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
    """(units, features) of every weight whose outputs are the group's units."""
    return [
        unit_rows(model.get_parameter(part.tensor), part.dim, part.indices)
        for part in weight_slices(model, group.slices)
    ]


class ReaderMoments(Reading):
    """Moments of every group's units at the input of every module that reads them.

    `values[group][reader]` are moments of the group's entries, unit after unit: memory O(readers x (units x
    entries)^2). With `apart`, the entries of a unit count as samples of one number: O(readers x units^2).
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
        """One entry per reader; ValueError when nothing was read."""
        if self._readers and not self._moments:
            raise ValueError("calibration has no batches; give at least one")
        return [moments for key, moments in self._moments.items() if key[0] == group.name]


def reader_moments(
    network: Network, calibration: Iterable, groups: Sequence[UnitGroup], layout: Layout
) -> dict[str, list[Moments]]:
    """Moments of each group's entries, unit after unit, by the group's name. One forward pass."""
    reading = ReaderMoments(groups, layout)
    read(network.model, calibration, [reading])
    return {group.name: reading.of(group) for group in groups}


def share(values: Tensor) -> Tensor:
    """Each value's share of their sum; equal shares when all are zero."""
    total = values.sum()
    return values / total if total > 0 else torch.full_like(values, 1 / len(values))


def by_damage(damage: Tensor) -> ChannelScore:
    """Least damage first; redundancy is how far below the group's greatest damage a unit lies.

    >>> by_damage(torch.tensor([0.5, 0.0, 0.25]))
    ChannelScore(order=(1, 2, 0), redundancy=(0.0, 1.0, 0.5), damage=(0.5, 0.0, 0.25))
    """
    damage = damage.clamp(min=0)
    redundancy = 1 - damage / damage.max() if damage.max() > 0 else torch.ones_like(damage)
    return ChannelScore(tuple(damage.argsort(stable=True).tolist()), tuple(redundancy.tolist()), tuple(damage.tolist()))


def by_similarity(similarity: Tensor) -> ChannelScore:
    """Remove again and again the unit that one still there resembles most; damage is 1 - similarity^2, over all units.

    `similarity[i, j]` in [0, 1]: how well j stands for i. Of several equally similar units the one goes that resembles
    the others most. The last unit has nothing left to stand for it, unless it needs nothing. O(units^3).

    >>> by_similarity(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.6], [0.0, 0.6, 1.0]])).order
    (1, 0, 2)
    """
    ties = similarity.double().clone().fill_diagonal_(0)
    size = len(ties)
    needless = (ties.sum(1) + 1 > size - 1e-9) if size > 1 else torch.zeros(1, dtype=torch.bool)
    remaining = torch.ones(size, dtype=torch.bool)
    closest = needless.double()  # what stands for each unit when it goes
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
