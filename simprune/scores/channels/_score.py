"""The score of one group of channels, and the functions by which several scores compute it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from simprune.core.structures import Slice, UnitGroup
from simprune.core.ties import levelled
from simprune.scores.output_changes import OutputLoss


@dataclass(frozen=True)
class ChannelScore:
    """How dispensable every channel (or other unit) of a group of C is.

    Args:
        order: the C channels, from the first to be removed to the last.
        redundancy: (C,) in [0, 1], the share of a channel that the remaining channels make up for; 1 is wholly
            redundant.
        damage: (C,) from 0, what is lost when a channel is removed at its turn, in a unit that is the same for all
            groups.
        losses: what the outputs of the layers that read the group lose when the first units of the order are removed,
            by how many are (see `levels`), for scores that refit these layers.
        nearest: for every channel the other one that is most like it, for scores that compare them (their fact
            `nearest`).

    >>> score = ChannelScore(order=(1, 2, 0), redundancy=(0.0, 1.0, 0.5), damage=(0.5, 0.125, 0.25))
    >>> score.costing({1: 0.25, 2: 0.75}).damage
    (1.0, 0.25, 0.5)
    """

    order: tuple[int, ...]
    redundancy: tuple[float, ...]
    damage: tuple[float, ...]
    losses: Mapping[int, tuple[OutputLoss, ...]] = field(default_factory=dict, compare=False, repr=False)
    nearest: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, order: Sequence[int], redundancy: Tensor, damage: Tensor) -> "ChannelScore":
        """A score from the order of removal and tensors (C,)."""
        return cls(tuple(order), tuple(redundancy.tolist()), tuple(damage.tolist()))

    def costing(self, measured: Mapping[int, float]) -> "ChannelScore":
        """A copy whose damages sum up, over the first units of the order, to what was measured for so many.

        Between two numbers of units the increase is divided as the damages are, or evenly where these are 0. What was
        measured for more units counts at least as much as for fewer. Units behind the last number are scaled like those
        before it.
        """
        damage, start, cost = list(self.damage), 0, 0.0
        for stop in sorted(measured):
            units, more = self.order[start:stop], max(measured[stop] - cost, 0.0)
            share = sum(self.damage[unit] for unit in units)
            for unit in [*units, *(self.order[stop:] if stop == max(measured) else ())]:
                damage[unit] = more * self.damage[unit] / share if share > 0 else more / len(units)
            start, cost = stop, cost + more
        return replace(self, damage=tuple(damage))


def levels(size: int) -> list[int]:
    """Numbers of units of a group of this size, over the whole course of its removal, whose damage is measured.

    >>> levels(64), levels(2), levels(1)
    ([4, 8, 16, 32, 48, 60], [1], [1])
    """
    counts = (round(size * share) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 15 / 16))
    return sorted({min(max(count, 1), max(size - 1, 1)) for count in counts})


def nearest(similarity: Tensor) -> tuple[int, ...]:
    """For every unit the other one that is most similar, from (units, units) similarities of at least -1.

    >>> nearest(torch.tensor([[1.0, 0.2, 0.8], [0.2, 1.0, 0.1], [0.8, 0.1, 1.0]]))
    (2, 0, 0)
    """
    return tuple(similarity.clone().fill_diagonal_(-2).argmax(1).tolist())


def reading_weights(group: UnitGroup) -> list[Slice]:
    """The slices of a group that belong to the weights of modules which read its units."""
    return [part for part in group.slices if part.side == "in" and part.tensor.endswith("weight")]


def by_damage(damage: Tensor, order: Sequence[int] | None = None) -> ChannelScore:
    """The score of units by their damage alone: the least damage is removed first, unless there is another order.

    Redundancy is 1 - damage / the greatest damage of the group.

    >>> by_damage(torch.tensor([0.5, 0.0, 0.25]))
    ChannelScore(order=(1, 2, 0), redundancy=(0.0, 1.0, 0.5), damage=(0.5, 0.0, 0.25))
    """
    damage = damage.clamp(min=0)
    redundancy = 1 - damage / damage.max() if damage.max() > 0 else torch.ones_like(damage)
    least_first: list[int] = levelled(damage.tolist()).argsort(kind="stable").tolist()
    return ChannelScore.of(least_first if order is None else order, redundancy, damage)


def by_shares(parts: Sequence[Tensor]) -> ChannelScore:
    """The score of units whose damage is their share in a sum: the mean over several (units,) tensors.

    All shares of a tensor of zeros are equal.

    >>> by_shares([torch.tensor([1.0, 3.0]), torch.zeros(2)]).damage
    (0.375, 0.625)
    """
    shares = [part / part.sum() if part.sum() > 0 else torch.full_like(part, 1 / len(part)) for part in parts]
    return by_damage(torch.stack(shares).mean(0))


def by_unexplained(order: Sequence[int], unexplained: Tensor) -> ChannelScore:
    """The score of units from the (units,) shares of them that the remaining units do not explain at their turn.

    Damage is such a share, divided by the number of units.
    """
    unexplained = unexplained.clamp(0, 1)
    return ChannelScore.of(order, 1 - unexplained, unexplained / len(unexplained))


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
        alike = ties.sum(1).masked_fill(~equal, -1)
        unit = int((alike >= alike.max() - 1e-9).nonzero()[0, 0])  # the first, and not the one that rounding prefers
        closest[unit] = best[unit]
        remaining[unit] = False
        ties[:, unit] = 0
        order.append(unit)
    return by_unexplained([*order, int(remaining.nonzero()[0, 0])], 1 - closest.square())
