"""Progress of long work, on standard error so that what is piped stays clean."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], description: str) -> Iterable[T]:
    """The same items, with a bar that disappears at the end; no bar where standard error is not a terminal."""
    from rich.console import Console  # imported here, so that `import simprune` does not wait for rich
    from rich.progress import track

    screen = Console(stderr=True)
    return track(items, description=description, transient=True, console=screen, disable=not screen.is_terminal)


def say(line: str) -> None:
    """Print one line about long work, if standard error is a terminal."""
    from rich.console import Console

    screen = Console(stderr=True, highlight=False)
    if screen.is_terminal:
        screen.print(line, markup=False)
