"""Files and folders that are written whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Within the block, an empty folder to write into; afterwards it is `folder`, unless an error was raised.

    The files are written to a hidden sibling `.NAME.partial-*`, which is renamed when complete; what was there before
    is moved aside first and removed last.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with whole_folder(Path(parent, "result")) as partial:
    ...         write_whole(partial / "plan.yaml", "edits: []")
    ...     [path.name for path in Path(parent, "result").iterdir()]
    ['plan.yaml']
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            flush(path)
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # already renamed, unless something went wrong


def _swap(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; what was there is moved aside first and removed last."""
    earlier = partial.with_name(f"{partial.name}-earlier")
    if folder.exists():
        os.rename(folder, earlier)
    try:
        os.rename(partial, folder)
    except BaseException:
        if earlier.exists():
            os.rename(earlier, folder)
        raise
    flush(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no flush of it
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_overwriting(path: Path, what: str, remedy: str) -> None:
    """Raise FileExistsError, with what to do, for a file or a folder with something in it."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} holds {what} already; {remedy}")
