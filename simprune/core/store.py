"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file aside, flush it to disk and rename it, so that nobody ever sees a part of it.

    Args:
        path: of the file; its folder is created if it is missing.
        content: a text, or a function that writes to the path that it is called with, such as that of safetensors.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "a", "plan.yaml"), "edits: []")
    ...     Path(folder, "a", "plan.yaml").read_text()
    'edits: []'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # two processes do not write into one file
    try:
        partial.touch()
        mode = partial.stat().st_mode
        if isinstance(content, str):
            partial.write_text(content, encoding="utf-8")
        else:
            content(partial)
        partial.chmod(mode)  # safetensors makes its files private
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # already renamed, unless an error was raised
    flush(path.parent)


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no flush of it
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
