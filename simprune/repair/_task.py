"""What a repair method gets to work on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from simprune.core.plan import Plan
from simprune.edit.effects import Effects
from simprune.trace.network import Network


@dataclass(frozen=True)
class Task:
    """A smaller network to repair in place, and the original that it should answer like.

    `batches` are the calibration inputs, empty for a method that needs no data. `chosen` tells, by the name of a layer
    or block, whether the recipe wants this method there; `layers` the same, with the methods that this one includes.
    All modules of `small` have the original's names. A method adds to `notes` what it leaves alone, and why.
    """

    small: nn.Module
    plan: Plan
    network: Network
    effects: Effects
    batches: Sequence[Any]
    chosen: Callable[[str], bool]
    layers: Callable[[str], bool]
    notes: list[str] = field(default_factory=list)
