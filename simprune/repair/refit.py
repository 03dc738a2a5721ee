"""What refitting needs to know of both networks, and what it tells of a layer or segment: its errors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import device_of
from simprune.edit.effects import Effects
from simprune.repair.halves import Halves
from simprune.repair.leading import Leading
from simprune.repair.repeats import Repeat
from simprune.repair.ridge import Ridge
from simprune.repair.segments import Segment
from simprune.trace.axes import Axes
from simprune.trace.layers import matrix_of, output_dim
from simprune.trace.shortcuts import Shortcut

VALUES = 2**23  # outputs that a block is fitted to as a whole: bounds time and memory


@dataclass(frozen=True)
class Refit:
    """Relative squared error of one layer or block against the original's output, before and after; the ridge used."""

    layer: str
    before: float
    after: float
    ridge: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Repair:
    """What refitting needs to know.

    Args:
        small: the pruned network, changed in place.
        model: the original.
        effects: of the plan.
        normalisers: layer -> the BatchNorm that reads it.
        shortcuts: layer -> the shortcut around its block.
        ridge: of the fit (see `simprune.repair.ridge`).
        together: segments whose layers are at last fitted together.
        values: number of entries, of its output or of a layer in it, to which a segment is fitted.
        repeats: layers that run more than once, with all modules that compute with their weight.
        filters: convolutions in channel groups, which only segments change, and the BatchNorms behind them.
        notes: to which a line is added for every segment that is not fitted, with the reason.
        axes: of the original.
        halves: of blocks, whose last layers are fitted to the stream.
        leading: the ridges of these layers in a language model; None where they choose like all others.
        shared: whether layers are fitted to the batches of all processes, of which this one runs some.
        inputs: how many all processes have; None before `simprune.repair.in_order` counts them.
    """

    small: nn.Module
    model: nn.Module
    effects: Effects
    normalisers: Mapping[str, str]
    shortcuts: Mapping[str, Shortcut]
    ridge: Ridge
    together: Sequence[Segment] = ()
    values: int = VALUES
    repeats: Mapping[str, Repeat] = field(default_factory=dict)
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    axes: Axes = field(default_factory=lambda: Axes({}, {}))
    halves: Halves = field(default_factory=Halves)
    leading: Leading | None = None
    shared: bool = False
    inputs: int | None = None

    def remaining(self, name: str) -> Tensor:
        """Outputs of the original's layer that the smaller one still has."""
        source = self.model.get_submodule(name)
        names = self.repeats[name].modules if name in self.repeats else (name,)
        removed = {i for each in names for i in self.effects.removed.get((f"{each}.weight", output_dim(source)), ())}
        indices = [index for index in range(matrix_of(source).shape[0]) if index not in removed]
        return torch.tensor(indices, device=device_of(self.small))

    def narrows(self, name: str) -> bool:
        """Whether what a layer of the original gives is mostly no larger than what it gets, and so no loss to hold."""
        outputs, inputs = matrix_of(self.model.get_submodule(name)).shape
        return outputs <= inputs
