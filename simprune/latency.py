"""Latency by structure: the modules of a group, timed by themselves at a few widths on the inputs they really get.

A timer is a function (module, args, kwargs) -> seconds of one call; by default the median of `torch.utils.benchmark`
on the device at hand.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simprune.batches import eval_mode
from simprune.cost import Example, latency
from simprune.planning.space import Additive, Choice, Floats, Menu, Space

Timer = Callable[[nn.Module, tuple, dict], float]
Edit = Callable[[Choice], nn.Module]  # the network with a choice removed
WIDTHS = 4  # per group, from nothing to everything gone; linear in between
SECONDS = 0.02


def clock(module: nn.Module, args: tuple, kwargs: dict) -> float:
    """Median seconds of one call on the device at hand."""
    return latency(module, (args, kwargs), SECONDS)


def batch_of(example: Example, size: int | None) -> Example:
    """The example with its rows repeated to a batch of `size` inputs; as it is for None.

    >>> batch_of(((torch.zeros(2, 3), None), {}), 5)[0][0].shape
    torch.Size([5, 3])
    """
    if size is None:
        return example
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"planner: batch_size must be a whole number of at least 1; got {size!r}")

    def resized(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return value[torch.arange(size, device=value.device) % len(value)]

    args, kwargs = example
    return tuple(map(resized, args)), {key: resized(value) for key, value in kwargs.items()}


def latency_table(space: Space, model: nn.Module, example: Example, edit: Edit, timer: Timer = clock) -> Additive:
    """What every width of every group, and every block, saves in seconds, as if savings added up.

    Groups that share no module are cut at once, so that few networks have to be edited. What interacts (a layer that
    loses inputs and outputs, work between layers) is left to the measurement of the final network.
    """
    names = [entry.name for entry in space.blocks]
    modules = [_modules(menu) for menu in space.menus]
    original = _times(model, example, {*names, *(name for each in modules for name in each)}, timer)
    measured: list[dict[int, float]] = [{0: 0.0} for _ in space.menus]
    for together in _apart(modules):
        for part in range(1, WIDTHS):
            choice = space.nothing
            for item in together:
                last = len(space.menus[item].counts) - 1
                choice.levels[item] = max(round(part / (WIDTHS - 1) * last), 1)
            cut = edit(choice)
            times = _times(cut, example, {name for item in together for name in modules[item]}, timer)
            for item in together:
                saved = sum(original[name] - times[name] for name in modules[item] if name in times)
                measured[item][int(choice.levels[item])] = saved
    tables = tuple(_between(menu, found) for menu, found in zip(space.menus, measured, strict=True))
    return Additive(timer(model, *example), tables, np.array([original.get(name, 0.0) for name in names], float))


def _modules(menu: Menu) -> tuple[str, ...]:
    """Modules whose work changes with a group's width; all of attention for heads."""
    group = menu.entry.group
    if group.kind == "heads":
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


def _times(model: nn.Module, example: Example, names: Iterable[str], timer: Timer) -> dict[str, float]:
    """Seconds of each named module that runs, on the inputs of its first call in one forward pass."""
    seen: dict[str, tuple[tuple, dict]] = {}
    wanted = set(names)
    handles = [
        module.register_forward_pre_hook(_keep(seen, name), with_kwargs=True)
        for name, module in model.named_modules()
        if name in wanted
    ]
    try:
        args, kwargs = example
        with eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: timer(model.get_submodule(name), *seen[name]) for name in sorted(seen)}


def _keep(seen: dict[str, tuple[tuple, dict]], name: str) -> Callable[..., None]:
    def see(_: nn.Module, args: tuple, kwargs: dict) -> None:
        copied = tuple(value.clone() if isinstance(value, Tensor) else value for value in args)
        seen.setdefault(name, (copied, dict(kwargs)))

    return see


def _between(menu: Menu, measured: Mapping[int, float]) -> Floats:
    """Savings of all levels: linear between measured ones in the number of units gone, never falling."""
    levels = sorted(measured)
    counts = np.array(menu.counts, float)
    known = np.maximum.accumulate([max(measured[level], 0.0) for level in levels])
    return np.interp(counts, counts[levels], known)
