"""What a kind of structure has to say of itself."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from simprune.core.cost import Example
from simprune.core.structures import Block, Coupling, UnitGroup
from simprune.trace.network import Network

Refusals = list[tuple[str, str]]  # names of what cannot be removed, with the reason


class Structure(ABC):
    """A kind of structure."""

    @abstractmethod
    def find(self, network: Network) -> tuple[Sequence[Block] | Sequence[UnitGroup], Refusals]:
        """All structures of this kind whose removal is proven on a copy, and those that cannot go, with the reason."""


class UnitStructure(Structure):
    """Units inside layers, such as channels or heads, which go one by one."""

    kind: ClassVar[str]  # what plans, tables and pages call the units

    @abstractmethod
    def coupling(self, network: Network, name: str) -> Coupling:
        """The units that an edit of `name` numbers, and what they own; NotPrunable with the reason."""

    @abstractmethod
    def remove(self, small: nn.Module, example: Example, edits: Sequence[tuple[Sequence[str], Sequence[int]]]) -> None:
        """Remove units from `small` itself.

        Every edit has the names of modules that make the same units, of which at least one is still there, the named
        one first, and the numbers that go. NotPrunable, with the reason, where that cannot be done.
        """
