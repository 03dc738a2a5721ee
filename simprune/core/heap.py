"""Freed memory goes back to the system.

The C library keeps what is freed, thread by thread, for later requests that may never come. After the thousands of
activations of a large model that is as much as the model itself, and no longer of use to anybody.
"""

import ctypes
import resource
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

SLACK = 2**26  # bytes: with less than so much more resident memory than last time, it is not worth the time
STATM = Path("/proc/self/statm")

_resident = 0  # bytes, when memory was given back last


def give_back() -> None:
    """Return freed memory to the system, where the process has grown since the last time; Linux with glibc alone.

    It costs about 10 ms per GiB, and changes no result.

    >>> give_back()
    """
    global _resident
    trim = _trim()
    if trim is not None and resident() > _resident + SLACK:
        trim(0)
        _resident = resident()


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize() if STATM.exists() else 0


@cache
def _trim() -> Callable[[int], int] | None:
    """The function of glibc; None elsewhere."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
