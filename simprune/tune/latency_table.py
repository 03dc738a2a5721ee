"""Latency by structure: the modules of a group, timed by themselves at many widths on the inputs they really get.

Time falls with the width in steps, where kernels work in tiles of 8, 16 or 64 channels, and may even rise: widths that
take no less time than a wider one are not worth having. A timer is a function (module, args, kwargs) -> seconds of one
call; by default the median of `torch.utils.benchmark` on the device at hand.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simprune.core.batches import copied
from simprune.core.cost import Example
from simprune.planners.search import Search, savings
from simprune.planners.space import Additive, Floats, Menu, Selection, Space
from simprune.trace.context import eval_mode
from simprune.trace.hooks import hooks
from simprune.trace.timing import Timer, clock

Edit = Callable[[Selection], nn.Module]  # the network with a selection removed
WIDTHS = 16  # per group that are timed at most
WORTH = 0.03  # share of what a group's modules take that a width has to save beyond the wider ones to be worth having
READINGS = 3  # of every shape, of which the median counts
FLOOR = 0.1  # what a structure saves at least, as a share of what it would if time were macs: readings are noisy


@dataclass(frozen=True)
class Timing:
    """What every width of every group, and every block, saves in seconds, as if savings added up.

    `worth`: of every group the levels that save more than all before them, 0 and the last one among them.
    """

    table: Additive
    worth: tuple[NDArray[np.intp], ...]


def latency_table(space: Space, model: nn.Module, example: Example, edit: Edit, timer: Timer = clock) -> Timing:
    """Time what could be saved: widths of groups, in a network in which only they are cut, and blocks.

    Groups that share no module are cut at once, so that few networks have to be edited, and modules of equal shapes are
    timed once. Widths between two that were timed save in proportion. What interacts (a layer that loses inputs and
    outputs, work between layers) is left to the measurement of the final network.
    """
    names = [entry.name for entry in space.blocks]
    modules = [_modules(menu) for menu in space.menus]
    timed = [_timed(menu) for menu in space.menus]
    known: dict[str, float] = {}
    original = _times(model, example, {*names, *(name for each in modules for name in each)}, timer, known)
    measured: list[dict[int, float]] = [{0: 0.0} for _ in space.menus]
    for together in _apart(modules):
        for turn in range(max(len(timed[item]) for item in together)):
            selection = space.nothing
            cut = [item for item in together if turn < len(timed[item])]
            for item in cut:
                selection.levels[item] = timed[item][turn]
            times = _times(edit(selection), example, {name for item in cut for name in modules[item]}, timer, known)
            for item in cut:
                saved = sum(original[name] - times[name] for name in modules[item] if name in times)
                measured[item][int(selection.levels[item])] = saved
    whole = median(timer(model, *example) for _ in range(READINGS))
    needed = [WORTH * sum(original.get(name, 0.0) for name in each) for each in modules]
    worth = tuple(_worth(found, least) for found, least in zip(measured, needed, strict=True))
    tables = [_between(menu, found) for menu, found in zip(space.menus, measured, strict=True)]
    macs = Search(space, {"macs": 0.0})
    least = [FLOOR * whole * saved for saved in savings(macs, space.nothing)]
    groups = tuple(np.maximum(table, floor) for table, floor in zip(tables, least, strict=True))
    shares = FLOOR * whole * np.array([entry.share for entry in space.blocks])
    return Timing(Additive(whole, groups, np.maximum([original.get(name, 0.0) for name in names], shares)), worth)


def _timed(menu: Menu) -> list[int]:
    """Levels that are timed: those that leave a multiple of the smallest power of two that gives few, and the last."""
    units = menu.entry.group.units
    left = menu.entry.group.width - np.cumsum([0, *(len(units[unit]) for unit in menu.order)])[list(menu.counts)]
    step = 1
    while (left[1:] % step == 0).sum() > WIDTHS:
        step *= 2
    last = len(left) - 1
    return [level for level in range(1, last + 1) if level == last or left[level] % step == 0]


def _worth(measured: Mapping[int, float], least: float) -> NDArray[np.intp]:
    levels, best = [0], 0.0
    for level in sorted(measured)[1:]:
        if measured[level] > best + least or level == max(measured):
            levels.append(level)
            best = max(best, measured[level])
    return np.array(levels)


def _modules(menu: Menu) -> tuple[str, ...]:
    """Modules whose work changes with a group's width; all of attention for heads."""
    group = menu.entry.group
    if group.kind != "channels":
        return (group.name,)
    names = dict.fromkeys((*group.producers, *group.consumers))
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _apart(modules: Sequence[Iterable[str]]) -> Iterator[list[int]]:
    """Items in as few sets as a greedy walk finds, no two of one set sharing a module."""
    left = list(range(len(modules)))
    while left:
        used: set[str] = set()
        together = []
        for item in left:
            if used.isdisjoint(modules[item]):
                used.update(modules[item])
                together.append(item)
        yield together
        left = [item for item in left if item not in together]


def _times(
    model: nn.Module, example: Example, names: Iterable[str], timer: Timer, known: dict[str, float]
) -> dict[str, float]:
    """Seconds of each named module that runs, on the inputs of its first call in one forward pass.

    `known`: seconds by what a module is and gets and gives, which is added to.
    """
    keys: dict[str, str] = {}
    new: dict[str, tuple[nn.Module, tuple, dict]] = {}
    wanted = set(names)

    def see(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if name not in keys:
                keys[name] = key = f"{module} {_shapes(args)} {_shapes(kwargs)} {_shapes(output)}"
                if key not in known and key not in new:
                    new[key] = module, *copied((args, kwargs))

        return hook

    args, kwargs = example
    watched = [(module, see(name)) for name, module in model.named_modules() if name in wanted]
    with eval_mode(model), torch.no_grad(), hooks(after=watched):
        model(*args, **kwargs)
    readings = [{key: timer(*each) for key, each in new.items()} for _ in range(READINGS)]
    known |= {key: median(times[key] for times in readings) for key in new}
    return {name: known[key] for name, key in keys.items()}


def _shapes(value: Any) -> Any:
    """What decides the work: shapes and types of tensors, and everything else as it is."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: _shapes(each) for key, each in value.items()}
    return tuple(map(_shapes, value)) if isinstance(value, tuple | list) else value


def _between(menu: Menu, measured: Mapping[int, float]) -> Floats:
    """Savings of all levels: linear between measured ones in the number of units gone, never falling."""
    levels = sorted(measured)
    counts = np.array(menu.counts, float)
    known = np.maximum.accumulate([max(measured[level], 0.0) for level in levels])
    return np.interp(counts, counts[levels], known)
