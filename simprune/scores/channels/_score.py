"""What a score says of one group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from simprune.core.structures import UnitGroup
from simprune.scores.output_changes import OutputLoss


@dataclass(frozen=True)
class ChannelScore:
    """Channels in the order in which they would go, with what each loss costs at its turn.

    `redundancy[c]` in [0, 1]: the share of channel c that those still there make up for; 1 is wholly redundant.
    `damage[c]` >= 0: what is lost, in a unit that is the same for all groups. `losses`: what the layers that read the
    group lose when the first `half` of the order is gone, for scores that refit them.
    """

    order: tuple[int, ...]
    redundancy: tuple[float, ...]
    damage: tuple[float, ...]
    losses: tuple[OutputLoss, ...] = field(default=(), compare=False, repr=False)

    @property
    def half(self) -> int:
        return max(len(self.order) // 2, 1)

    def scaled(self, factor: float) -> "ChannelScore":
        """The same with all damages multiplied."""
        return replace(self, damage=tuple(each * factor for each in self.damage))


Scorer = Callable[[nn.Module, Iterable, Sequence[UnitGroup]], Mapping[str, ChannelScore]]
