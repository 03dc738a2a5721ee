"""Progress of long work: a bar on a terminal, one line a step elsewhere, all of it by Python's logging.

The logger is `simprune`; nothing is shown until `reporting` or the user's own handlers ask for it. rich is imported
only for a bar.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar

from simprune.core.store import append_whole

T = TypeVar("T")

LOGGER = logging.getLogger("simprune")
LOGGER.addHandler(logging.NullHandler())
OFTEN = 30.0  # seconds after which a step that goes on says how far it is
_bars: list[Any] = []  # the bars of the terminal, one object for all steps, as steps lie inside of others
_depth = [0]  # of the step that is under way; steps inside of another are told to the file alone


def progress(items: Iterable[T], description: str) -> Iterator[T]:
    """The same items; how many are done, the time that they took, and an estimate of the rest.

    >>> list(progress([1, 2], "counting"))
    [1, 2]
    """
    total = length_hint(items) or None  # some batches know no length, or only until they are divided
    with _step(description, total) as task:
        for item in items:
            yield item
            task.advance()


@contextmanager
def step(description: str) -> Iterator[None]:
    """A step of long work within the block, without parts that could be counted.

    >>> with step("prove removals"):
    ...     pass
    """
    with _step(description, None):
        yield


def say(line: str) -> None:
    """One line about long work."""
    LOGGER.info(line)


class _Task:
    """One step that is under way."""

    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total, self.done = description, total, 0
        self.start = self.told = time.monotonic()
        self.bar = _bars[-1].add_task(description, total=total) if _bars else None

    def advance(self) -> None:
        """One more item is done."""
        self.done += 1
        if self.bar is not None and _bars:
            _bars[-1].advance(self.bar)
        now = time.monotonic()
        if now - self.told > OFTEN:
            self.told = now
            self._tell(f"{self._count()} after {seconds(now - self.start)}{self._rest(now - self.start)}")

    def end(self, finished: bool) -> None:
        """The step is over, or was left."""
        if self.bar is not None and _bars:
            _bars[-1].remove_task(self.bar)
        passed = seconds(time.monotonic() - self.start)
        count = self._count()
        self._tell((f"{count} in {passed}" if count else passed) if finished else f"left after {passed}", finished)

    def _tell(self, text: str, loud: bool = True) -> None:
        LOGGER.log(logging.INFO if loud and _depth[0] == 1 else logging.DEBUG, "%s: %s", self.description, text)

    def _count(self) -> str:
        if self.total is None:
            return str(self.done or "")
        return f"{self.done}" if self.done == self.total else f"{self.done} of {self.total}"

    def _rest(self, passed: float) -> str:
        if not self.total or not self.done:
            return ""
        return f", about {seconds(passed / self.done * (self.total - self.done))} left"


@contextmanager
def _step(description: str, total: int | None) -> Iterator[_Task]:
    task, finished = _Task(description, total), False
    _depth[0] += 1
    try:
        yield task
        finished = True
    finally:
        task.end(finished)
        _depth[0] -= 1


def seconds(value: float) -> str:
    """A duration.

    >>> seconds(3.21), seconds(75), seconds(7300)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def reporting(log: Path | None = None) -> Iterator[None]:
    """Within the block steps are shown: as bars where standard error is a terminal, elsewhere as lines.

    Args:
        log: a file that gets every line, with its time, also of steps inside of others; None for none. It is written,
            and its folder made, when the first line comes.
    """
    level, onward, handlers = LOGGER.level, LOGGER.propagate, list[logging.Handler]()
    if log is not None:
        handlers.append(_LogFile(log))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    bars = None
    if sys.stderr.isatty():
        bars = _terminal()
    else:
        handlers.append(logging.StreamHandler())
        handlers[-1].setLevel(logging.INFO)
    try:
        LOGGER.setLevel(logging.DEBUG)
        LOGGER.propagate = False  # Hydra's own handlers would print every line again
        for handler in handlers:
            LOGGER.addHandler(handler)
        if bars is not None:
            bars.start()
            _bars.append(bars)
        yield
    finally:
        if bars is not None:
            _bars.remove(bars)
            bars.stop()
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()
        LOGGER.setLevel(level)
        LOGGER.propagate = onward


class _LogFile(logging.Handler):
    """Adds every line whole to a file, whose folder need not be there before its first line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line; OSError where it cannot be written, as on a full disk, where nothing else could be either."""
        append_whole(self.path, f"{self.format(record)}\n".encode())


def _terminal() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    times = [TimeElapsedColumn(), TimeRemainingColumn()]
    return Progress(*columns, *times, transient=True, console=Console(stderr=True))
