"""What can be removed: residual blocks, and groups of interchangeable units such as channels or attention heads."""

from collections.abc import Sequence
from dataclasses import dataclass


class NotPrunable(Exception):
    """A structure that cannot be removed safely; the message is the reason."""


@dataclass(frozen=True)
class Block:
    """A module that can go. `replace`: "identity", its input goes on, or "zero", nothing is added to the stream.

    Blocks of one `chain` follow each other directly. `inside` names the block around a half.
    """

    name: str
    replace: str = "identity"
    chain: int = 0
    inside: str = ""
    kind: str = "block"


@dataclass(frozen=True)
class Slice:
    """Entries that one tensor loses with every unit of a group: `indices[u]` along `dim` for unit u.

    `inputs[u]` are the entries of the module's input, where they are not the tensor's (grouped convolutions).
    """

    tensor: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    side: str  # "out": produced here; "in": read here
    inputs: tuple[tuple[int, ...], ...] = ()

    @property
    def module(self) -> str:
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Coupling:
    """Output channels of one layer with all that goes with them.

    A unit is a smallest set of channels that can go: one channel, unless a gated product, a grouped convolution or a
    group normalisation ties several together.
    """

    units: tuple[tuple[int, ...], ...]
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class UnitGroup:
    """Interchangeable units of a network, such as channels or heads, and the entries of tensors that each owns.

    A unit is what can go by itself: `units[u]` are its numbers in an edit, mostly just one. `slices[i].indices[u]`
    are its entries in one tensor. `kind` is the name of the structure, such as "channels" or "heads"; a group is named
    after the module that its edits name.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    kind: str = "channels"
    units: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, "units", tuple((unit,) for unit in range(self.size)))

    @property
    def width(self) -> int:
        """How many channels or heads there are: what an edit's indices count."""
        return sum(len(unit) for unit in self.units)

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules whose outputs carry these units."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.side == "out"))

    @property
    def consumers(self) -> tuple[str, ...]:
        """Modules that read these units and forget them."""
        return tuple(dict.fromkeys(part.module for part in self.slices if part.side == "in"))

    def expand(self, units: Sequence[int]) -> tuple[int, ...]:
        """The indices of an edit that removes these units."""
        return tuple(sorted(index for unit in units for index in self.units[unit]))

    def cut(self, units: Sequence[int]) -> dict[tuple[str, int], int]:
        """How many entries every tensor loses along each dimension when these units go."""
        lost: dict[tuple[str, int], set[int]] = {}
        for part in self.slices:
            gone = lost.setdefault((part.tensor, part.dim), set())
            for unit in units:
                gone.update(part.indices[unit])
        return {key: len(gone) for key, gone in lost.items()}
