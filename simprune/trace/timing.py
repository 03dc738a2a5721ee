"""How long networks take: the median over turns, so that a slow moment of the machine meets all networks."""

import platform
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core import processes
from simprune.core.batches import tensors_in
from simprune.core.cost import Example
from simprune.core.example import ELEMENTS, rows_of
from simprune.trace.context import evaluation

Timer = Callable[[nn.Module, tuple, dict], float]  # seconds of one call of a module with these arguments
SECONDS = 0.02  # for which `clock` repeats a call
ROUNDS = 15  # of timing networks in turns, at most
LEAST = 5  # such rounds that suffice after `ENOUGH` seconds
ENOUGH = 4.0


def clock(module: nn.Module, args: tuple, kwargs: dict) -> float:
    """Mean seconds of one call in evaluation mode, on the module's device, repeated for `SECONDS`, or called once.

    Of several processes the first measures, and all know what it has measured.
    """
    return processes.once(lambda: _clock(module, args, kwargs))


def _clock(module: nn.Module, args: tuple, kwargs: dict) -> float:
    from torch.utils import benchmark  # which imports setuptools, and takes half a second

    timer = timeit.Timer(partial(module, *args, **kwargs), timer=benchmark.timer)  # which waits for a GPU
    with evaluation(module):
        timer.timeit(1)  # warms up
        once = timer.timeit(1)
        calls = round(SECONDS / once)
        return timer.timeit(calls) / calls if calls > 1 else once


def batch_of(example: Example, size: int | None) -> Example:
    """The example with its rows repeated, or cut, to a batch of `size` inputs; unchanged for None.

    Raises ValueError for a size that is no whole number of at least 1, and for more than `ELEMENTS` numbers.

    >>> batch_of(((torch.zeros(2, 3), None), {}), 5)[0][0].shape
    torch.Size([5, 3])
    """
    if size is None:
        return example
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"planner: batch_size must be a whole number of at least 1; got {size!r}")
    numbers = size * sum(value[0].numel() for value in tensors_in(example) if value.ndim)
    if numbers > ELEMENTS:
        raise ValueError(f"planner: batch_size: expected inputs of at most {ELEMENTS:,} numbers; got {numbers:,}")

    def resized(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return value[torch.arange(size, device=value.device) % len(value)]

    args, kwargs = example
    return tuple(map(resized, args)), {key: resized(value) for key, value in kwargs.items()}


WORK = 100_000_000  # multiply-adds of one call that is timed by default, at least
MOST = 64  # inputs of such a call, at most


def default_size(macs: float, rows: int = 2) -> int:
    """The number of inputs with which a network is timed unless a plan names one: a power of two, from 2 to 64.

    So many that one call takes 100 million multiply-adds or more. With fewer, starting the layers takes longer than
    their work, and networks that differ in width alone take the same time.

    Args:
        macs: multiply-adds of one input.
        rows: inputs at least.

    >>> default_size(41e6), default_size(1e9), default_size(1e4)
    (4, 2, 64)
    """
    size = rows
    while size < MOST and size * macs < WORK:
        size *= 2
    return size


@dataclass(frozen=True)
class Latency:
    """The seconds of one network in a rotation: the median, the quartiles, and those of its ratio to the first one.

    `turns`: how often it was timed.
    """

    seconds: float
    spread: tuple[float, float]
    ratio: float
    ratio_spread: tuple[float, float]
    turns: int

    @property
    def told_apart(self) -> bool:
        """Whether the difference from the first network is larger than what the turns differ by."""
        low, high = self.ratio_spread
        return not low <= 1.0 <= high


def rotate(models: Sequence[nn.Module], example: Example, timer: Timer | None = None) -> list[Latency]:
    """Time networks in turns, one after another, so that all meet the same slow and fast moments.

    There are `ROUNDS` turns, or `LEAST` where these take `ENOUGH` seconds.

    Args:
        models: the first is the one that others are compared with.
        example: arguments of a call.
        timer: (module, args, kwargs) -> seconds; by default `clock`.

    Returns:
        The latency of every network.

    >>> times = {4: 3.0, 2: 1.5}
    >>> layers = [nn.Linear(4, 4), nn.Linear(4, 2)]
    >>> [entry.ratio for entry in rotate(layers, ((), {}), lambda layer, args, kwargs: times[layer.out_features])]
    [1.0, 0.5]
    """
    timed = timer or clock
    begun, turns = time.perf_counter(), list[list[float]]()
    while len(turns) < LEAST or (len(turns) < ROUNDS and processes.once(lambda: time.perf_counter() - begun) < ENOUGH):
        turns.append([timed(model, *example) for model in models])
    columns = list(zip(*turns, strict=True))
    rows = []
    for column in columns:
        ratios = [seconds / first for seconds, first in zip(column, columns[0], strict=True)]
        rows.append(Latency(median(column), _quartiles(column), median(ratios), _quartiles(ratios), len(turns)))
    return rows


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def bench(example: Example, device: torch.device, turns: int) -> dict[str, Any]:
    """What a latency depends on beside the network: inputs of a call, threads, device, its name, turns."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    facts = {"batch_size": rows_of(example), "threads": torch.get_num_threads(), "device": str(device), "name": name}
    return facts | {"turns": turns}


def _processor() -> str:
    """The name of the CPU, as the system says it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def sentence(timing: Mapping[str, Any]) -> str:
    """What `bench` found, in words.

    >>> sentence({"batch_size": 16, "threads": 1, "device": "cpu", "name": "a CPU", "turns": 15})
    'latency of a call with 16 inputs, 1 thread, on cpu (a CPU): median and quartiles of 15 turns over all networks'
    """
    threads = f"{timing['threads']} thread{'s' * (timing['threads'] != 1)}"
    where = f"on {timing['device']} ({timing['name']})"
    return (
        f"latency of a call with {timing['batch_size']} inputs, {threads}, {where}: median and quartiles of "
        f"{timing['turns']} turns over all networks"
    )


def alternate(
    model: nn.Module, small: nn.Module, example: Example, timer: Timer = clock
) -> Iterator[tuple[float, float]]:
    """Seconds of `model` and of `small`, without end, in turns: a machine that slows down meanwhile slows both."""
    while True:
        yield timer(model, *example), timer(small, *example)
