"""Progress of long work, on standard error so that what is piped stays clean."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T] | Iterable[T], description: str) -> Iterable[T]:
    """The same items, with a bar that goes away at the end; no bar where nobody looks at a terminal."""
    screen = Console(stderr=True)
    return track(items, description=description, transient=True, console=screen, disable=not screen.is_terminal)


def say(line: str) -> None:
    """One line about long work, where somebody looks at a terminal."""
    screen = Console(stderr=True, highlight=False)
    if screen.is_terminal:
        screen.print(line, markup=False)
