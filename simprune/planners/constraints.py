"""Constraints: what a plan must leave alone. They hold for every planner, because planners only see what is allowed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from simprune.core.cost import CostModel
from simprune.core.names import did_you_mean
from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Redundancy
from simprune.core.structures import UnitGroup

RESIDUAL = "residual"  # in `protect`: the channels of every residual stream


@dataclass(frozen=True)
class Constraints:
    """What must stay.

    `protect`: names or patterns (`layer1.*`) of layers and blocks, with all that is in them, or `residual`, the
    channels of residual streams. `round_to`: widths become multiples of it, or stay as they are. `min_width`: channels
    that a layer keeps at least. `max_share` in (0, 1]: the largest share of a layer's channels, or heads, that may go.
    """

    protect: Sequence[str] = ()
    round_to: int = 1
    min_width: int = 1
    max_share: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.protect, str):
            raise ValueError(f"planner: protect must be a list of names or patterns; got {self.protect!r}")
        object.__setattr__(self, "protect", tuple(self.protect))
        for name in ("round_to", "min_width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"planner: {name} must be a whole number of at least 1; got {value!r}")
        share = self.max_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"planner: max_share must be in (0, 1]; got {share!r}")

    def check(self, redundancy: Redundancy) -> None:
        """Raise ValueError for a name or pattern that fits nothing in the network."""
        known = _known(redundancy)
        for pattern in self.protect:
            if pattern != RESIDUAL and not any(_matches(name, pattern) for name in known):
                raise ValueError(f"planner: protect: nothing is named {pattern!r}; {did_you_mean(pattern, known)}")

    def blocks(self, redundancy: Redundancy) -> tuple[BlockRedundancy, ...]:
        """The blocks that may go: not protected, and nothing inside is."""
        named = [pattern for pattern in self.protect if pattern != RESIDUAL]
        if not named:
            return redundancy.blocks
        known = _known(redundancy)
        stay = [name for name in known if any(_matches(name, pattern) for pattern in named)]
        return tuple(
            entry
            for entry in redundancy.blocks
            if not any(name == entry.name or name.startswith(f"{entry.name}.") for name in stay)
        )

    def groups(self, redundancy: Redundancy) -> tuple[ChannelRedundancy, ...]:
        """The groups of which anything may go: no layer that makes their channels is protected."""
        return tuple(entry for entry in redundancy.channels if not self._protected(entry.group, redundancy.costs))

    def _protected(self, group: UnitGroup, costs: CostModel) -> bool:
        if RESIDUAL in self.protect and is_stream(group, costs):
            return True
        names = (group.name, *group.producers)
        return any(_matches(name, pattern) for name in names for pattern in self.protect)

    def counts(self, group: UnitGroup, order: Sequence[int]) -> list[int]:
        """How many units may go, the first ones of `order`: 0 and every number that leaves an allowed width."""
        width = left = group.width
        allowed = [0]
        for count, unit in enumerate(order[:-1], 1):
            left -= len(group.units[unit])
            share = 1 - left / width
            narrow = group.kind == "channels" and (left < self.min_width or left % self.round_to)
            if not narrow and share <= self.max_share + 1e-12:
                allowed.append(count)
        return allowed


def is_stream(group: UnitGroup, costs: CostModel) -> bool:
    """Whether layers add to these channels after others have read them, which makes them a residual stream.

    Layers count in the order in which the network defines them, and normalisations not at all.
    """
    order = {name.rpartition(".")[0]: place for place, name in reversed([*enumerate(costs.tensors)])}
    wide = {name for name, tensor in costs.tensors.items() if len(tensor.shape) > 1}
    makers = [order[part.module] for part in group.slices if part.side == "out" and part.tensor in wide]
    readers = [order[part.module] for part in group.slices if part.side == "in" and part.tensor in wide]
    return bool(makers and readers) and max(makers) > min(readers)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _known(redundancy: Redundancy) -> list[str]:
    """Every module that has tensors, and the modules around it, in order."""
    names: dict[str, None] = {}

    def add(tensors: Iterable[str]) -> None:
        for tensor in tensors:
            parts = tensor.split(".")[:-1]
            names.update(dict.fromkeys(".".join(parts[: end + 1]) for end in range(len(parts))))

    add(redundancy.costs.tensors)
    names.update(dict.fromkeys(entry.name for entry in redundancy.entries))
    return list(names)
