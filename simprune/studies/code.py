"""By which code a stored result was computed: results of other code are not taken over."""

import hashlib
import inspect
import marshal
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

SIMPRUNE = Path(__file__).parents[1]


def digest_of_files(files: Iterable[Path]) -> str:
    """Hash of the names and contents of files, in whatever order they come."""
    content = hashlib.sha256()
    for path in sorted(files):
        content.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return content.hexdigest()[:12]


@cache
def code_of_study(study: Callable[..., Any] | None = None) -> str:
    """Digest of all code of simprune, and of a study that is not simprune's own.

    Of such a study it covers its file and the Python files beside it; of one without a file, as in a notebook, its
    compiled function.

    >>> code_of_study() == code_of_study()
    True
    """
    files = {*SIMPRUNE.rglob("*.py")}
    if not isinstance(study, FunctionType):
        return digest_of_files(files)
    path = Path(inspect.getsourcefile(study) or "")
    if path.is_file():
        return digest_of_files(files.union(path.parent.glob("*.py")))
    compiled = hashlib.sha256(marshal.dumps(study.__code__)).hexdigest()
    return hashlib.sha256(f"{digest_of_files(files)} {compiled}".encode()).hexdigest()[:12]


@cache
def code_of_networks() -> str:
    """Digest of the code that builds and trains the networks of studies."""
    return digest_of_files([*(SIMPRUNE / "zoo").glob("*.py"), SIMPRUNE / "studies" / "networks.py"])
