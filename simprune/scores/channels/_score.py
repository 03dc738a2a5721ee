"""What a score says of one group."""

from dataclasses import dataclass, field, replace

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
        losses: what the outputs of the layers that read the group lose when the first `half` of the order is removed,
            for scores that refit these layers.

    >>> score = ChannelScore(order=(1, 2, 0), redundancy=(0.0, 1.0, 0.5), damage=(0.5, 0.0, 0.25))
    >>> score.half, score.scaled(2).damage
    (1, (1.0, 0.0, 0.5))
    """

    order: tuple[int, ...]
    redundancy: tuple[float, ...]
    damage: tuple[float, ...]
    losses: tuple[OutputLoss, ...] = field(default=(), compare=False, repr=False)

    @property
    def half(self) -> int:
        """How many channels are half of the group, at least one."""
        return max(len(self.order) // 2, 1)

    def scaled(self, factor: float) -> "ChannelScore":
        """A copy with all damages multiplied by `factor`."""
        return replace(self, damage=tuple(value * factor for value in self.damage))
