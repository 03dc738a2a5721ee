"""Where the passes of both networks stop while layers are refitted on the way, and what is fitted there."""

from collections.abc import Sequence
from dataclasses import dataclass

from simprune.repair.refit import Repair
from simprune.repair.segments import Segment


@dataclass(frozen=True)
class Unit:
    """What is fitted between two stops.

    Args:
        entry: the module that both passes stop at.
        layers: that are fitted, in order of execution.
        segment: the block or segment that begins there; None for a layer alone.
        is_stepped: whether its layers are fitted on the way through it, and not in passes of its own.
    """

    entry: str
    layers: Sequence[str]
    segment: Segment | None
    is_stepped: bool


@dataclass(frozen=True)
class Stops:
    """The modules that the passes of the original and of the pruned network stop at, in order of execution.

    `behind`: those of the original at which it stops once they have run.
    """

    original: Sequence[str]
    pruned: Sequence[str]
    behind: set[str]


def stretches_of(layers: Sequence[str], repair: Repair) -> list[list[str]]:
    """Layers that one pass in lockstep refits; those that run more than once by themselves."""
    stretches: list[list[str]] = []
    for layer in layers:
        if layer in repair.repeats or not stretches or stretches[-1][0] in repair.repeats:
            stretches.append([])
        stretches[-1].append(layer)
    return stretches


def units_of(layers: Sequence[str], repair: Repair) -> list[Unit]:
    """The units of one stretch, in order of execution."""
    others = {shortcut.module for shortcut in repair.shortcuts.values()}
    others |= {half.block for half in repair.halves.layers.values()}
    others -= {part.name for part in repair.together}
    segments = [*repair.together, *(Segment(name, name, ()) for name in others)]
    parts: dict[str, tuple[Segment | None, list[str]]] = {}
    for layer in layers:
        segment = next((part for part in segments if part.holds(layer)), None)
        parts.setdefault(layer if segment is None else segment.entry, (segment, []))[1].append(layer)

    def is_stepped(entry: str, segment: Segment | None) -> bool:
        own = segment is None or segment in repair.together or any(other.startswith(f"{entry}.") for other in parts)
        return not own

    return [Unit(entry, inside, part, is_stepped(entry, part)) for entry, (part, inside) in parts.items()]


def stops_of(units: Sequence[Unit], repair: Repair) -> Stops:
    """Where the passes stop for these units."""
    original: dict[str, None] = {}  # as ordered sets
    pruned: dict[str, None] = {}
    behind: set[str] = set()
    halves, followers = repair.halves.layers, repair.halves.successors
    for unit in units:
        own = [layer for layer in unit.layers if layer in halves]
        ends = [layer for layer in own if not halves[layer].is_last]
        steps = unit.layers if unit.is_stepped and not own else ends
        original |= dict.fromkeys([unit.entry, *steps])
        pruned |= dict.fromkeys([unit.entry, *(unit.layers if unit.is_stepped else ())])
        behind |= {*ends, *(layer for layer in steps if repair.narrows(layer))}
        if unit.segment is None and repair.narrows(unit.entry) and unit.entry not in followers.values():
            behind.add(unit.entry)
        if unit.entry in followers:
            original[followers[unit.entry]] = None
    return Stops([*original], [*pruned], behind)
