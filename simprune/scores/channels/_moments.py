"""The moments and correlations of a group's units, at the input of every module that reads them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from simprune.core import processes
from simprune.core.moments import WIDE, Collected, Moments
from simprune.core.spaced import enough
from simprune.core.structures import UnitGroup
from simprune.scores.channels._score import reading_weights
from simprune.trace.capture import Reading
from simprune.trace.precision import require_finite
from simprune.trace.sites import Layout, Site

FEW = 256  # units whose correlations with all others are looked at together


class ReaderMoments(Reading):
    """Reads the moments of every group's units at the input of every module that reads them.

    Args:
        groups: groups of units.
        layout: "positions" for one row per position, "pool" for the mean over positions.
        apart: whether the entries of a unit, of which a flattened map has several, count as samples of one number.
            Memory is O(readers x units^2) then, else O(readers x (units x entries)^2).
        shared: whether each of several processes looks after some of the groups, and knows the moments of these alone.
    """

    def __init__(
        self, groups: Sequence[UnitGroup], layout: Layout = "positions", apart: bool = False, shared: bool = False
    ) -> None:
        self.groups, self.apart = groups, apart
        self.owners = {group.name: number % processes.count() for number, group in enumerate(groups)}
        self.mail = processes.Mail(self._add, lambda key: self.owners[key[0]]) if shared else None
        self.layout: Layout = layout
        self._readers: dict[str, list[tuple[str, Tensor]]] = {}
        for group in groups:
            for part in reading_weights(group):
                units = torch.tensor(part.inputs or part.indices)  # (units, entries)
                self._readers.setdefault(part.module, []).append((group.name, units))
        self._collected: dict[tuple[str, str, int], Collected] = {}

    @property
    def sites(self) -> list[Site]:
        widths = {name: max(map(_width, read)) for name, read in self._readers.items()}
        return [Site(name, self.layout, "input", most=enough(width)) for name, width in widths.items()]

    def see(self, site: Site, value: Tensor) -> None:
        rows = site.rows(value)
        for number, (group, units) in enumerate(self._readers[site.module]):
            units = units.to(rows.device)
            columns = rows[:, units].movedim(1, -1).flatten(0, 1) if self.apart else rows[:, units.flatten()]
            require_finite(columns.sum(0, dtype=torch.float32), f"the input of {site.module}")
            key = group, site.module, 0 if self.apart else number
            if self.mail is None:
                self._add(key, columns)
            else:
                self.mail.send(key, columns)

    def _add(self, key: tuple[str, str, int], columns: Tensor) -> None:
        collected = self._collected.setdefault(key, Collected())
        collected.add(columns if columns.shape[1] >= WIDE else columns.double())

    def of(self, group: UnitGroup) -> list[Moments]:
        """Moments of one group, unit after unit, one entry per reader; ValueError when no batch was read."""
        if self._readers and not self._collected:
            raise ValueError("calibration has no batches; give at least one")
        return [collected.moments() for key, collected in self._collected.items() if key[0] == group.name]

    def correlations(self) -> Iterator[tuple[str, Tensor]]:
        """The name of every group with the (readers, C, C) correlations of its C units, one group at a time.

        What was read of a group is forgotten on the way, because it is large. ValueError when no batch was read. Of
        several processes that share the groups, each gives those that it looks after.
        """
        for group, read in self._own():
            correlations = torch.stack([correlation_of(each.moments().covariance.cpu()) for each in read])
            read.clear()
            yield group.name, correlations

    def nearest(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name of every group with the other unit that correlates most with every unit, over all readers.

        As `correlations`, a few units at a time: beside what was read, memory is O(units), where these are many.
        """
        for group, read in self._own():
            readers = [_Correlations(each) for each in read]
            read.clear()
            most: list[int] = []
            for start in range(0, group.size, FEW):
                units = slice(start, min(start + FEW, group.size))
                alike = torch.stack([reader.of(units) for reader in readers]).mean(0).abs()
                alike[torch.arange(len(alike)), torch.arange(units.start, units.stop)] = -2
                most += alike.argmax(1).tolist()
            yield group.name, tuple(most)

    def _own(self) -> Iterator[tuple[UnitGroup, list[Collected]]]:
        """What was read of every group that this process looks after, by reader; it is forgotten here on the way."""
        if self._readers and not self._collected:
            raise ValueError("calibration has no batches; give at least one")
        for group in self.groups:
            if self.mail is None or self.owners[group.name] == processes.rank():
                keys = [key for key in self._collected if key[0] == group.name]
                yield group, [self._collected.pop(key) for key in keys]


class _Correlations:
    """Correlations of some columns with all, from the rows while they are fewer than columns, else from products."""

    def __init__(self, collected: Collected) -> None:
        rows = collected.rows()
        self._rows = None if rows is None or rows.shape[1] < WIDE else rows.float()
        if self._rows is None:
            moments = collected.as_summed()
            self._products, self._count = moments.scatter.cpu(), moments.count
            variances = self._products.diagonal().double() / self._count
        else:
            mean = self._rows.mean(0, dtype=torch.float64)  # in double precision exact where all rows are equal
            self._rows = self._rows - mean.to(self._rows)
            self._count = len(self._rows)
            variances = self._rows.square().sum(0).double().cpu() / self._count
        self._inverse = _inverse_scale(variances)

    def of(self, columns: slice) -> Tensor:
        """(n, columns)."""
        products = self._products[columns] if self._rows is None else (self._rows[:, columns].T @ self._rows).cpu()
        return (products.double() / self._count).mul_(self._inverse).mul_(self._inverse[columns, None])


def _width(read: tuple[str, Tensor]) -> int:
    return read[1].numel()


def correlation_of(covariance: Tensor) -> Tensor:
    """A covariance as correlations, in place; a dead channel has no variance and correlates with nothing, nor itself.

    >>> correlation_of(torch.tensor([[4.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    inverse = _inverse_scale(covariance.diagonal())
    return covariance.mul_(inverse).mul_(inverse[:, None])


def _inverse_scale(variances: Tensor) -> Tensor:
    """One by the standard deviation of every channel; 0 for a dead one."""
    scale = variances.clamp(min=0).sqrt()
    alive = scale > 1e-12 * max(float(scale.max()), 1e-300)
    return torch.where(alive, 1 / scale.where(alive, torch.ones_like(scale)), torch.zeros_like(scale))
