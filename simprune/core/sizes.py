"""How much memory a network would take, said before any of it is taken."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = 1_000_000  # of torch, while a network is built; one of a thousand layers takes a few thousand
MEMORY = 64 << 30  # bytes, where the system does not say how many it has


def memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return MEMORY


def free_memory() -> int:
    """Bytes that this process can still take: what the machine has free, or what is left of the limit of its group."""
    free = [memory()]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):
        most, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free.append(most - used)
    return min(free)


def refuse_large(needed: float, what: str, remedy: str) -> None:
    """Raise ValueError where work would take more memory than is free.

    Args:
        needed: bytes.
        what: takes them, as the error begins.
        remedy: what to do, as it ends.

    >>> refuse_large(1e18, "score", "take another one")
    Traceback (most recent call last):
    ValueError: score: about 1e+09 GB of memory are needed, and ... GB are free; take another one
    """
    free = free_memory()
    if needed > free:
        raise ValueError(
            f"{what}: about {needed / 1e9:.3g} GB of memory are needed, and {free / 1e9:.3g} GB are free; {remedy}"
        )


def refuse_huge(build: Callable[[], Any], what: str, most: int | None = None) -> None:
    """Build a network without memory for its tensors, and stop where these would not fit.

    Args:
        build: makes the network, on torch's default device.
        what: is built, as the error begins.
        most: bytes of all tensors that building makes; None for the memory of this machine.

    Raises:
        ValueError: where there would be more, or more than `OPERATIONS` operations.

    >>> refuse_huge(lambda: torch.nn.Linear(10**6, 10**6), "model")
    Traceback (most recent call last):
    ValueError: model: expected at most ... GiB of tensors, which this machine has; got more
    """
    with torch.device("meta"), _Counting(what, memory() if most is None else most):
        build()


class _Counting(TorchDispatchMode):
    """Adds up the bytes of what operations make; those that work in place make nothing."""

    def __init__(self, what: str, most: int) -> None:
        super().__init__()
        self.what, self.most, self.bytes, self.operations = what, most, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(result, Tensor) and not any(result is value for value in args):
            self.bytes += result.numel() * result.element_size()
        if self.bytes > self.most:
            limit = f"{self.most / 2**30:,.0f} GiB of tensors, which this machine has"
            raise ValueError(f"{self.what}: expected at most {limit}; got more")
        if self.operations > OPERATIONS:
            raise ValueError(f"{self.what}: expected at most {OPERATIONS:,} operations to build it; got more")
        return result
