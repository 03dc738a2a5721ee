"""Latency by structure: the modules of a group are timed by themselves, at many widths, on their real inputs.

Kernels work in tiles of 8, 16 or 64 channels, so time falls with the width in steps, and may even rise. Widths that
take no less time than a larger width are not worth having. A timer is a function (module, args, kwargs) -> seconds
of one call; the default is the median of `torch.utils.benchmark` on the model's device.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simprune.core.batches import copied
from simprune.core.cost import Example
from simprune.planners.search import Search, savings
from simprune.planners.space import Additive, Menu, Selection, Space
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.timing import Timer, clock

Edit = Callable[[Selection], nn.Module]  # returns the network without the selection
WIDTHS = 16  # of a group that are timed at most, beside the smallest
WORTH = 0.03  # of the time of a group's modules: a width that saves so much more than larger ones is worth having
READINGS = 3  # how often every shape is timed; the median counts
FLOOR = 0.1  # of a structure's share of the macs: the least share of the time that it is taken to save, as clocks err


@dataclass(frozen=True)
class Timing:
    """The seconds that structures save, as if savings added up.

    `table`: the savings of every level of every group, and of every block. `worth`: for every group the levels that
    save clearly more than all levels before them; level 0 and the last level are always among them.
    """

    table: Additive
    worth: tuple[NDArray[np.intp], ...]


def latency_table(space: Space, model: nn.Module, example: Example, edit: Edit, timer: Timer = clock) -> Timing:
    """Time the seconds that every structure saves.

    Groups that share no module are cut in one network, so that few networks have to be edited; modules of equal shapes
    are timed once. Savings never fall with the number of removed units, and between two timed widths they are linear in
    it. Interactions (a layer that loses inputs
    and outputs, work between layers) show only when the final network is measured.

    Args:
        space: the groups and blocks.
        model: the original.
        example: one batch, as (args, kwargs).
        edit: returns the network without a selection.
        timer: (module, args, kwargs) -> seconds.

    Returns:
        The savings of every structure, and the levels that are worth having.
    """
    names = [entry.name for entry in space.blocks]
    modules, timed = [_modules(menu) for menu in space.menus], [_timed(menu) for menu in space.menus]
    known: dict[str, float] = {}
    original = _times(model, example, {*names, *chain.from_iterable(modules)}, timer, known)
    measured: list[dict[int, float]] = [{0: 0.0} for _ in space.menus]
    for disjoint in _disjoint(modules):
        for turn in range(max(len(timed[item]) for item in disjoint)):
            selection = space.nothing
            cut = [item for item in disjoint if turn < len(timed[item])]
            for item in cut:
                selection.levels[item] = timed[item][turn]
            times = _times(edit(selection), example, {name for item in cut for name in modules[item]}, timer, known)
            for item in cut:
                saved = sum(original[name] - times[name] for name in modules[item] if name in times)
                measured[item][int(selection.levels[item])] = saved
    whole = median(timer(model, *example) for _ in range(READINGS))
    groups, worth = [], []
    shares = savings(Search(space, {"macs": 0.0}), space.nothing)
    for menu, own, saved, share in zip(space.menus, modules, measured, shares, strict=True):
        levels, counts = sorted(saved), np.array(menu.counts, float)
        rising = np.maximum.accumulate([max(saved[level], 0.0) for level in levels])
        groups.append(np.maximum(np.interp(counts, counts[levels], rising), FLOOR * whole * share))
        worth.append(_worth(saved, WORTH * sum(original.get(name, 0.0) for name in own)))
    floors = FLOOR * whole * np.array([entry.share for entry in space.blocks])
    blocks = np.maximum([original.get(name, 0.0) for name in names], floors)
    return Timing(Additive(whole, tuple(groups), blocks), tuple(worth))


def _timed(menu: Menu) -> list[int]:
    """The levels to time: the last one, and those that leave a multiple of 2^k units, k so large that few levels do."""
    units = menu.entry.group.units
    remaining = menu.entry.group.width - np.cumsum([0, *(len(units[unit]) for unit in menu.order)])[list(menu.counts)]
    step = 1
    while (remaining[1:] % step == 0).sum() > WIDTHS:
        step *= 2
    last = len(remaining) - 1
    return [level for level in range(1, last + 1) if level == last or remaining[level] % step == 0]


def _worth(measured: Mapping[int, float], least: float) -> NDArray[np.intp]:
    """The levels that save at least `least` seconds more than all levels before them; `measured`: savings by level."""
    levels, best = [0], 0.0
    for level in sorted(measured)[1:]:
        if measured[level] > best + least or level == max(measured):
            levels.append(level)
            best = max(best, measured[level])
    return np.array(levels)


def _modules(menu: Menu) -> tuple[str, ...]:
    """The modules whose work depends on a group's width; for heads that is the whole attention module."""
    group = menu.entry.group
    if group.kind != "channels":
        return (group.name,)
    names = dict.fromkeys((*group.producers, *group.consumers))
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _disjoint(modules: Sequence[Iterable[str]]) -> Iterator[list[int]]:
    """Partition items, greedily into few sets, so that no two items of a set share a module."""
    remaining = list(range(len(modules)))
    while remaining:
        used: set[str] = set()
        disjoint = []
        for item in remaining:
            if used.isdisjoint(modules[item]):
                used.update(modules[item])
                disjoint.append(item)
        yield disjoint
        remaining = [item for item in remaining if item not in disjoint]


def _times(
    model: nn.Module, example: Example, names: Iterable[str], timer: Timer, known: dict[str, float]
) -> dict[str, float]:
    """Seconds by name of the named modules that run, on the inputs of their first call in one forward pass.

    `known`: seconds by module and shapes of its inputs and output; new timings are added to it.
    """
    keys: dict[str, str] = {}
    new: dict[str, tuple[nn.Module, tuple, dict]] = {}
    wanted = set(names)

    def see(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if name not in keys:
            keys[name] = key = f"{module} {_shapes(args)} {_shapes(kwargs)} {_shapes(output)}"
            if key not in known and key not in new:
                new[key] = module, *copied((args, kwargs))

    args, kwargs = example
    watched = [(module, partial(see, name)) for name, module in model.named_modules() if name in wanted]
    with eval_mode(model), torch.no_grad(), hooks(after=watched):
        model(*args, **kwargs)
    readings = [{key: timer(*call) for key, call in new.items()} for _ in range(READINGS)]
    known |= {key: median(times[key] for times in readings) for key in new}
    return {name: known[key] for name, key in keys.items()}


def _shapes(value: Any) -> Any:
    """Shapes and types in place of tensors, as a module's work depends on these; other values are unchanged."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: _shapes(item) for key, item in value.items()}
    return tuple(map(_shapes, value)) if isinstance(value, tuple | list) else value
