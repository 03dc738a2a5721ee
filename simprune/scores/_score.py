"""What a score says of one group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from simprune.structures import UnitGroup


@dataclass(frozen=True)
class Score:
    """Channels in the order in which they would go, with what each loss costs at its turn.

    `redundancy[c]` in [0, 1]: the share of channel c that those still there make up for; 1 is wholly redundant.
    `damage[c]` >= 0: what is lost, in a unit that is the same for all groups.
    """

    order: tuple[int, ...]
    redundancy: tuple[float, ...]
    damage: tuple[float, ...]


Scorer = Callable[[nn.Module, Iterable, Sequence[UnitGroup]], Mapping[str, Score]]
