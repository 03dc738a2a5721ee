"""A disk that is full."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, nothing is written beyond so many bytes of a file."""
    resource = pytest.importorskip("resource")
    most, system = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, system))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, system))
