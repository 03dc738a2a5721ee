"""Files and folders that are written whole or not at all."""

import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

ASIDE = "-earlier"  # what the name of a folder ends in that was moved aside
UNNAMED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of writing, which name no file
FULL = (*UNNAMED, errno.EROFS)  # errors after which nothing more can be written


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Within the block errors of writing, as on a full disk, name a path, and not a file aside that takes its name.

    Args:
        path: that is written.

    Raises:
        OSError: with the path, where something within the block cannot be written.

    >>> with naming("results/plan.yaml"):
    ...     raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'results/plan.yaml'
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        aside = f".{Path(path).name}."  # how names of unfinished files and folders begin
        if error.errno not in UNNAMED and not Path(str(error.filename)).name.startswith(aside):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_all(file: RawIOBase, content: bytes | memoryview) -> None:
    """Write all bytes to a file without a buffer, which may take a part at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


class Patient:
    """A file for a library that ends the whole process where a write fails, as torch's archives do in a destructor.

    Writes never raise; `close` raises the error of the first one that failed, after which nothing more is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Patient(Path(folder, "a"))
    ...     _ = file.write(b"one")
    ...     file.close()
    ...     Path(folder, "a").read_bytes()
    b'one'
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("wb", buffering=0)
        self._error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        """Take all bytes, and write them unless an earlier write has failed."""
        if self._error is None:
            try:
                write_all(self._file, content)
            except OSError as error:
                self._error = error
        return memoryview(content).nbytes

    def close(self) -> None:
        """End the file.

        Raises:
            OSError: with the path, where something could not be written.
        """
        self._file.close()
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path)) from self._error


def append_whole(path: Path, content: bytes) -> None:
    """Add bytes to the end of a file, all of them, or none where an error is raised.

    Args:
        path: of the file; its folder is created if it is missing.
        content: a line, for example.

    Raises:
        OSError: with the path, where they cannot be written.
        ValueError: for a link, since what it names is somebody else's.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append_whole(Path(folder, "log"), b"one\\n")
    ...     append_whole(Path(folder, "log"), b"two\\n")
    ...     Path(folder, "log").read_text()
    'one\\ntwo\\n'
    """
    refuse_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            write_all(file, content)
        except BaseException:
            file.truncate(before)
            raise


def write_whole(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file aside, flush it to disk and rename it, so that nobody ever sees a part of it.

    Args:
        path: of the file; its folder is created if it is missing.
        content: a text, or a function that writes to the path that it is called with, such as that of safetensors.

    Raises:
        OSError: with the path, where it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "a", "plan.yaml"), "edits: []")
    ...     Path(folder, "a", "plan.yaml").read_text()
    'edits: []'
    """
    with naming(path):
        _write_whole(path, content)


def _write_whole(path: Path, content: str | Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path, ".*.partial")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # two processes do not write into one file
    try:
        partial.touch()
        mode = partial.stat().st_mode
        with _locked(partial):
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
def whole_folder(folder: Path, replace: bool = True) -> Iterator[Path]:
    """Within the block, an empty folder to write into; afterwards it is `folder`, unless an error was raised.

    The files are written to a hidden sibling `.NAME.partial-*`, which takes the name when it is complete. What was
    there before is removed last. Siblings that killed processes left are removed first.

    Args:
        folder: that appears whole.
        replace: whether a folder with something in it, which may have appeared meanwhile, is replaced.

    Raises:
        FileExistsError: for a folder with something in it, unless `replace`.
        OSError: with the folder, where it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with whole_folder(Path(parent, "result")) as partial:
    ...         write_whole(partial / "plan.yaml", "edits: []")
    ...     [path.name for path in Path(parent, "result").iterdir()]
    ['plan.yaml']
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _tidy(folder, ".partial-*")
    with naming(folder), _held_folder(folder) as partial:
        try:
            yield partial
            for path in (*partial.rglob("*"), partial):
                flush(path)
            _swap(partial, folder, replace)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # already renamed, unless something went wrong


@contextmanager
def _held_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, locked as long as this process lives."""
    while True:
        partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
        partial.mkdir()
        with _locked(partial) as ours:
            if ours and partial.is_dir():  # else another process took it for a leftover
                yield partial
                return


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Within the block a file or folder is locked for this process, unless it is gone or another process holds it.

    The system gives the lock back when the process ends, however it ends.
    """
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:  # a file system without locks
            yield True
        else:
            yield True
    finally:
        os.close(descriptor)


def _tidy(target: Path, pattern: str) -> None:
    """Remove what killed processes left beside a file or folder; put back what one of them had moved aside."""
    if fcntl is None:  # whether a process still writes cannot be known
        return
    for path in sorted(target.parent.glob(f".{glob.escape(target.name)}{pattern}")):
        with _locked(path) as ended:
            if not ended:
                continue
            if path.is_file():
                path.unlink(missing_ok=True)
            elif path.name.endswith(ASIDE) and not target.exists():
                os.rename(path, target)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _swap(partial: Path, folder: Path, replace: bool) -> None:
    """Give `partial` the name of `folder`; what was there before gets the name of `partial`, or is removed.

    Where the system can, the two folders exchange their names in one step, so that nobody ever finds neither. Another
    process may write the same folder: the last one wins, and every folder is that of one process.
    """
    earlier = partial.with_name(partial.name + ASIDE)
    while not _renamed(partial, folder):
        if not replace:
            raise FileExistsError(f"{folder} appeared meanwhile and is not replaced; give another folder")
        if _exchange(partial, folder):
            break
        with suppress(FileNotFoundError):  # another process has just moved it
            os.rename(folder, earlier)
        try:
            done = _renamed(partial, folder)
        except BaseException:
            if earlier.exists():
                os.rename(earlier, folder)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
        if done:
            break
    flush(folder.parent)


def _renamed(partial: Path, folder: Path) -> bool:
    """Rename a folder; false where there is another one with something in it."""
    try:
        os.rename(partial, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Two paths exchange their names at once; false where the system cannot, as any but Linux."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, at_once = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), at_once) == 0


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no flush of it
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_folder(path: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        OSError: in one line, where it cannot be made.

    >>> require_folder(Path("/dev/null/results"))
    Traceback (most recent call last):
    NotADirectoryError: /dev/null/results cannot be a folder (Not a directory); choose another one
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{path} cannot be a folder ({error.strerror}); choose another one") from None


def refuse_links(*paths: Path) -> None:
    """Raise ValueError for a symbolic link among files, and in folders, that are added to, gone on with and removed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "state").symlink_to("/home")
    ...     refuse_links(Path(folder))
    Traceback (most recent call last):
    ValueError: ...state is a link, and what it names may be somebody else's; remove it, or start in a new folder
    """
    for path in paths:
        below = (Path(root, name) for root, folders, files in os.walk(path) for name in (*folders, *files))
        link = next((each for each in (path, *below) if each.is_symlink()), None)
        if link is not None:
            raise ValueError(
                f"{link} is a link, and what it names may be somebody else's; remove it, or start in a new folder"
            )


def refuse_overwriting(path: Path, what: str, remedy: str) -> None:
    """Raise FileExistsError, with what to do, for a file or a folder with something in it."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} holds {what} already; {remedy}")
