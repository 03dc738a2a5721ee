"""What can be removed, and how: one kind of structure per file.

A structure is a registered class with a method `find`, such as `Blocks`. A structure of units inside layers, such as
channels or heads, is a `UnitStructure`: it also says which entries of which tensors belong to a unit, and removes them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from simprune.core.cost import Example
from simprune.core.names import did_you_mean
from simprune.core.registry import find, parts
from simprune.core.structures import Block, Coupling, UnitGroup
from simprune.trace.network import Network

Refusals = list[tuple[str, str]]  # names of what cannot be removed, with the reason


class Structure(ABC):
    """A kind of structure; `absent` is the reason that users read where a network has none."""

    absent: ClassVar[str] = "nothing in the network looks like one"

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

    def remove_from_copy(
        self, network: Network, copy: nn.Module, edits: Sequence[tuple[Sequence[str], Sequence[int]]]
    ) -> None:
        """Remove units from a copy of a traced network in place, as `remove` does.

        A structure whose `remove` traces the network afresh can do without that here.

        Args:
            network: the original.
            copy: of its model, from which nothing has been removed.
            edits: as in `remove`; the first module of every edit is the one that names it.
        """
        self.remove(copy, network.example, edits)

    def ignore(self, masked: nn.Module, group: UnitGroup, unit: int) -> None:
        """Make a network compute as if a unit were not there, in place: its readers multiply the unit with zero.

        Args:
            masked: a copy of the original.
            group: the unit's group.
            unit: its number.
        """
        for part in group.slices:
            if part.side == "in" and part.tensor.endswith("weight"):
                weight = masked.get_parameter(part.tensor)
                index = torch.tensor(part.indices[unit], device=weight.device)
                weight.data = weight.data.index_fill(part.dim, index, 0.0)  # the original's memory stays as it is


def structure(name: str) -> Structure:
    """A structure by name; KeyError, with what was probably meant, for an unknown one."""
    return find("structure", name).make()


def find_blocks(network: Network) -> list[Block]:
    """The blocks that can be bypassed, in order of execution."""
    return [block for block in structure("blocks").find(network)[0] if isinstance(block, Block)]


def unit_structures() -> dict[str, UnitStructure]:
    """Structures of units by the name that edits use.

    Channels are last: their removal traces the network afresh, when the other units have been removed.
    """
    structures = [part.make() for part in parts("structure").values()]
    units = {structure.kind: structure for structure in structures if isinstance(structure, UnitStructure)}
    return dict(sorted(units.items(), key=lambda item: item[0] == "channels"))


def check_structures(names: Sequence[str]) -> tuple[str, ...]:
    """The names of structures, in the order in which they are searched for; ValueError unless all are known.

    >>> check_structures(["heads", "blocks"])
    ('blocks', 'heads')
    """
    known = parts("structure")
    if not names:
        raise ValueError(f"structures is empty; name some of: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"structures: unknown {name!r}; {did_you_mean(str(name), known)}")
    return tuple(name for name in known if name in names)
