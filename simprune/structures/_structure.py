"""The methods of a kind of structure."""

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
        """The structures of this kind in a network, in order of execution.

        Returns:
            The structures whose removal is proven on a copy, and the (name, reason) of those that cannot be removed.
        """


class UnitStructure(Structure):
    """Units inside layers, such as channels or heads, which are removed one by one."""

    kind: ClassVar[str]  # what plans, tables and pages call the units

    @abstractmethod
    def coupling(self, network: Network, name: str) -> Coupling:
        """The units of the module `name`, and the entries of tensors that belong to them.

        Raises:
            NotPrunable: when they cannot be removed; its message is the reason.
        """

    @abstractmethod
    def remove(self, small: nn.Module, example: Example, edits: Sequence[tuple[Sequence[str], Sequence[int]]]) -> None:
        """Remove units from a network in place.

        Args:
            small: a copy of the original, from which other structures may have been removed.
            example: arguments of a forward pass.
            edits: (modules, units). All the modules produce these units; the first is the one that the edit names, and
                at least one of them is still in the network. The units are numbers of the original.

        Raises:
            NotPrunable: when that cannot be done; its message is the reason.
        """
