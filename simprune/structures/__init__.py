"""What can be removed, and how: one kind of structure per file.

A structure is a registered class with a method `find`, such as `Blocks`. A structure of units inside layers, such as
channels or heads, is a `UnitStructure`: it also says which entries of which tensors belong to a unit, and removes them.
"""

from simprune.core.names import did_you_mean
from simprune.core.registry import find, parts
from simprune.core.structures import Block
from simprune.structures._structure import Refusals, Structure, UnitStructure
from simprune.trace.network import Network

__all__ = ["Refusals", "Structure", "UnitStructure", "check_structures", "find_blocks", "structure", "unit_structures"]


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


def check_structures(names: object) -> tuple[str, ...]:
    """The names of structures, in the order in which they are searched for; ValueError unless all are known.

    >>> check_structures(["heads", "blocks"])
    ('blocks', 'heads')
    """
    known = parts("structure")
    if isinstance(names, str) or not isinstance(names, list | tuple):
        raise ValueError(f"structures: expected a list of names, such as ['channels', 'blocks']; got {names!r}")
    if not names:
        raise ValueError(f"structures is empty; name some of: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"structures: unknown {name!r}; {did_you_mean(str(name), known)}")
    return tuple(name for name in known if name in names)
