"""How long a network takes: the median of repeated runs, and two networks timed in turns."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.cost import Example
from simprune.trace.context import evaluation


def latency(model: nn.Module, example: Example, seconds: float = 0.2) -> float:
    """Median seconds of one forward pass in evaluation mode, on the model's device, repeated for `seconds`."""
    from torch.utils import benchmark  # which imports setuptools, and takes half a second

    args, kwargs = example
    with evaluation(model):
        run = {"run": partial(model, *args, **kwargs)}
        timer = benchmark.Timer("run()", globals=run, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=seconds).median


Timer = Callable[[nn.Module, tuple, dict], float]  # seconds of one call of a module with these arguments
SECONDS = 0.02  # for which `clock` repeats a call


def clock(module: nn.Module, args: tuple, kwargs: dict) -> float:
    """Median seconds of one call, on the module's device."""
    return latency(module, (args, kwargs), SECONDS)


def batch_of(example: Example, size: int | None) -> Example:
    """The example with its rows repeated, or cut, to a batch of `size` inputs; unchanged for None.

    Raises ValueError for a size that is no whole number of at least 1.

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


def alternate(
    model: nn.Module, small: nn.Module, example: Example, timer: Timer = clock
) -> Iterator[tuple[float, float]]:
    """Seconds of `model` and of `small`, without end, in turns: a machine that slows down meanwhile slows both."""
    while True:
        yield timer(model, *example), timer(small, *example)


ROUNDS = 15  # of timing two models in turns


def time_both(model: nn.Module, small: nn.Module, example: Example) -> tuple[float, float, float]:
    """Median seconds of `model` and of `small`, and the median of their ratio (small / model), over `ROUNDS` turns."""
    times = islice(alternate(model, small, example), ROUNDS)
    before, after = zip(*times, strict=True)
    return median(before), median(after), median(second / first for first, second in zip(before, after, strict=True))
