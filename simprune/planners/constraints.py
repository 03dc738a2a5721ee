"""Constraints: what a plan must leave alone. They hold for every planner: planners see only what may be removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, chain

from simprune import settings
from simprune.core.cost import CostModel
from simprune.core.names import did_you_mean
from simprune.core.redundancy import BlockRedundancy, ChannelRedundancy, Redundancy
from simprune.core.structures import UnitGroup
from simprune.planners.alike import LAYER

RESIDUAL = "residual"  # in `protect`: the channels of every residual stream


@dataclass(frozen=True)
class Constraints(settings.Constraints):
    """What must stay in the network.

    `protect`: names or patterns (`layer1.*`) of layers and blocks, with all that is in them, or `residual`, the
    channels of residual streams. `round_to`: widths become multiples of it, or stay as they are. `min_width`: the
    fewest channels that a layer keeps. `max_share` in (0, 1]: the largest share of a layer's channels or heads that may
    be removed. `loader`: whose files the pruned model has to be (see `simprune.tune.loading`).
    """

    def check_names(self, known: Sequence[str]) -> None:
        """Raise ValueError for a name or pattern that fits none of these names."""
        for pattern in self.protect:
            if pattern != RESIDUAL and not any(_matches(name, pattern) for name in known):
                raise ValueError(f"planner: protect: nothing is named {pattern!r}; {did_you_mean(pattern, known)}")

    def blocks(self, redundancy: Redundancy) -> tuple[BlockRedundancy, ...]:
        """The blocks that may be removed: neither they nor anything inside them is protected."""
        named = [pattern for pattern in self.protect if pattern != RESIDUAL]
        stay = [name for name in known_names(redundancy) if any(_matches(name, pattern) for pattern in named)]
        return tuple(
            entry for entry in redundancy.blocks if not any(f"{name}.".startswith(f"{entry.name}.") for name in stay)
        )

    def groups(self, redundancy: Redundancy) -> tuple[ChannelRedundancy, ...]:
        """The groups that may lose units: no layer that makes their channels is protected."""
        return tuple(entry for entry in redundancy.channels if not self.protects(entry.group, redundancy.costs))

    def protects(self, group: UnitGroup, costs: CostModel) -> bool:
        """Whether these units stay, because a layer that makes them is protected, or their residual stream."""
        if RESIDUAL in self.protect and is_stream(group, costs):
            return True
        names = (group.name, *group.producers)
        return any(_matches(name, pattern) for name in names for pattern in self.protect)

    def counts(self, group: UnitGroup, order: Sequence[int]) -> list[int]:
        """How many units may be removed from the front of `order`: 0, and all numbers that leave an allowed width."""
        width = remaining = group.width
        allowed = [0]
        for count, unit in enumerate(order[: len(order) - group.least], 1):
            remaining -= len(group.units[unit])
            share = 1 - remaining / width
            refused = group.kind == "channels" and (remaining < self.min_width or remaining % self.round_to)
            if not refused and share <= self.max_share + 1e-12:
                allowed.append(count)
        return allowed


def is_stream(group: UnitGroup, costs: CostModel) -> bool:
    """Whether these channels are a residual stream: a layer adds to them after another layer has read them.

    The order of layers is that in which the network defines them. Normalisations are ignored. A group that stands for
    those of several layers (see `simprune.planners.alike`) is one if that of a layer is.
    """
    order = {name.rpartition(".")[0]: index for index, name in reversed([*enumerate(costs.tensors)])}
    wide = {name for name, tensor in costs.tensors.items() if len(tensor.shape) > 1}
    parts: dict[str, tuple[list[int], list[int]]] = {}  # by layer, what makes the channels and what reads them
    for part in group.slices:
        if part.tensor in wide and part.side in ("out", "in"):
            number = LAYER.search(part.module) if "*" in group.name else None
            layer = "" if number is None else part.module[: number.end()]
            parts.setdefault(layer, ([], []))[part.side == "in"].append(order[part.module])
    return any(makers and readers and max(makers) > min(readers) for makers, readers in parts.values())


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def known_names(redundancy: Redundancy) -> list[str]:
    """The names of every module that has tensors and of the modules around it, in order, and of all structures."""
    modules = (accumulate(tensor.split(".")[:-1], "{}.{}".format) for tensor in redundancy.costs.tensors)
    return list(dict.fromkeys([*chain.from_iterable(modules), *(entry.name for entry in redundancy.entries)]))
