"""What can be removed, and how: one kind of structure per file.

A structure is a registered class. One of blocks has `find`, as `Blocks`; one of units inside layers, such as channels
or heads, is a `UnitStructure`, which also says which entries of which tensors belong to a unit, and removes units.
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
    return [each for each in structure("blocks").find(network)[0] if isinstance(each, Block)]


def unit_structures() -> dict[str, UnitStructure]:
    """Structures of units by the name that edits call them; channels last, since their coupling is traced afresh."""
    made = [part.make() for part in parts("structure").values()]
    units = {each.kind: each for each in made if isinstance(each, UnitStructure)}
    return dict(sorted(units.items(), key=lambda item: item[0] == "channels"))


def check_structures(names: object) -> tuple[str, ...]:
    """The names of structures, in the order in which they are found; ValueError unless all are known."""
    known = parts("structure")
    if isinstance(names, str) or not isinstance(names, list | tuple):
        raise ValueError(f"structures: expected a list of names, such as ['channels', 'blocks']; got {names!r}")
    if not names:
        raise ValueError(f"structures is empty; name some of: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"structures: unknown {name!r}; {did_you_mean(str(name), known)}")
    return tuple(name for name in known if name in names)
