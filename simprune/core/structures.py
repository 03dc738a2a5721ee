"""What can be removed: residual blocks, and groups of interchangeable units such as channels or attention heads."""

from collections.abc import Sequence
from dataclasses import dataclass


class NotPrunable(Exception):
    """A structure that cannot be removed safely; the message is the reason."""


@dataclass(frozen=True)
class Block:
    """A module that can be removed.

    Args:
        name: of the module.
        replace: what replaces it: "identity", its input; "zero", nothing is added to the stream; or another
            stand-in (see `simprune.repair.stand_ins`).
        chain: number of its chain. In a chain every block begins with the output of the one before.
        inside: the block that a sub-block is part of.
        kind: "block".
        adds: where `replace` is "zero", the module whose output is added to the stream: the sub-block itself, or the
            normalisation behind it.
        gain: by which this output is multiplied first.
    """

    name: str
    replace: str = "identity"
    chain: int = 0
    inside: str = ""
    kind: str = "block"
    adds: str = ""
    gain: float = 1.0


@dataclass(frozen=True)
class Slice:
    """The entries of one tensor that belong to the units of a group.

    Args:
        tensor: name of the parameter or buffer.
        dim: along which the entries lie.
        indices: (units, entries), the entries that the tensor loses with a unit.
        side: "out" if the tensor produces the units, "in" if it reads them.
        inputs: (units, entries) of the module's input, where they differ from `indices` (grouped convolutions).
    """

    tensor: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    side: str
    inputs: tuple[tuple[int, ...], ...] = ()

    @property
    def module(self) -> str:
        """Name of the module that the tensor belongs to."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Coupling:
    """Output channels of one layer, and the entries of all tensors that have to be removed with them.

    A unit is a smallest set of channels that can be removed: one channel, unless a gated product, a grouped convolution
    or a group normalisation ties several together.
    """

    units: tuple[tuple[int, ...], ...]
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class UnitGroup:
    """Interchangeable units of a network, such as channels or heads, and the entries of tensors that belong to them.

    Args:
        name: of the module that edits name.
        size: number of units.
        slices: entries of tensors by unit.
        kind: name of the structure in edits, such as "channels" or "heads".
        units: (size, numbers) of channels or heads in an edit; one number per unit when left out.
        least: number of units that have to stay.

    >>> group = UnitGroup("conv", 2, (Slice("conv.weight", 0, ((0, 1), (2, 3)), "out"),), units=((0, 1), (2, 3)))
    >>> group.width, group.expand([1]), group.cut([1])
    (4, (2, 3), {('conv.weight', 0): 2})
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    kind: str = "channels"
    units: tuple[tuple[int, ...], ...] = ()
    least: int = 1

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, "units", tuple((unit,) for unit in range(self.size)))

    @property
    def width(self) -> int:
        """Number of channels or heads, which the indices of an edit count."""
        return sum(len(unit) for unit in self.units)

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules whose outputs carry these units."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.side == "out"))

    @property
    def consumers(self) -> tuple[str, ...]:
        """Modules that read these units and do not pass them on."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.side == "in"))

    def expand(self, units: Sequence[int]) -> tuple[int, ...]:
        """Indices of the edit that removes some units."""
        return tuple(sorted(index for unit in units for index in self.units[unit]))

    def cut(self, units: Sequence[int]) -> dict[tuple[str, int], int]:
        """Numbers of entries that tensors lose when some units are removed, by tensor and dimension."""
        removed: dict[tuple[str, int], set[int]] = {}
        for part in self.slices:
            entries = removed.setdefault((part.tensor, part.dim), set())
            for unit in units:
                entries.update(part.indices[unit])
        return {key: len(entries) for key, entries in removed.items()}
