"""Names: the nearest known name, the function that `package.module:function` names, the modules around a module."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from simprune.core.blame import with_line


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, or the first dozen when none is near.

    >>> did_you_mean("digist", ["digits", "own_model"])
    "did you mean 'digits'?"
    >>> did_you_mean("x", ["digits", "own_model"])
    'known: digits, own_model'
    """
    known = sorted(set(known))
    near = get_close_matches(word, known, n=3)
    if near:
        return f"did you mean {' or '.join(repr(name) for name in near)}?"
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"known: {', '.join(known[:12])}{more}" if known else "known: none"


def importable(folder: Path | str) -> None:
    """Let modules in `folder` be imported, as Python does for the folder of a script."""
    folder = str(Path(folder).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def resolve(name: str) -> Callable:
    """The function (or class) that `package.module:function` names; ValueError as `locate`, or for another form.

    >>> resolve("math:sqrt")(9)
    3.0
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"expected a name like package.module:function; got {name!r}")
    return locate(f"{module}.{function}")


def locate(path: str) -> Callable:
    """The function or class at a dotted path; the working folder is searched first.

    Raises ValueError, with the nearest known name, when a part of the path is missing, when importing fails, or when
    the value cannot be called.

    >>> locate("math.sqtr")
    Traceback (most recent call last):
    ValueError: math has no 'sqtr'; did you mean 'sqrt' or 'isqrt'?
    """
    importable(Path.cwd())
    importlib.invalidate_caches()  # a file may be newer than the process
    first, *rest = path.split(".")
    if importlib.util.find_spec(first) is None:
        near = get_close_matches(first, [info.name for info in pkgutil.iter_modules()], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "run simprune from the folder that holds it, or install it"
        raise ValueError(f"{path}: no module {first!r} in {Path.cwd()} or installed; {hint}")
    value, reached = _import(first), first
    for part in rest:
        inner = f"{reached}.{part}"
        if hasattr(value, part):
            value = getattr(value, part)
        elif hasattr(value, "__path__") and importlib.util.find_spec(inner) is not None:
            value = _import(inner)
        else:
            modules = [info.name for info in pkgutil.iter_modules(getattr(value, "__path__", []))]
            known = [*modules, *(key for key in dir(value) if not key.startswith("_"))]
            raise ValueError(f"{reached} has no {part!r}; {did_you_mean(part, known)}")
        reached = inner
    if not callable(value):
        raise ValueError(f"{path} is a {type(value).__name__}; expected a function or class")
    return value


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the user's own module does while it is imported
        raise ValueError(f"importing {module} failed: {with_line(error)}") from error


def fit(function: Callable, options: Iterable[str], name: str) -> None:
    """Raise ValueError, with what was probably meant, unless `function` takes these keyword arguments.

    >>> fit(Path.cwd, ["folder"], "cwd")
    Traceback (most recent call last):
    ValueError: cwd: got an unexpected keyword argument 'folder'; known: none
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none; they check their arguments themselves
        return
    try:
        signature.bind(**dict.fromkeys(options))
    except TypeError as error:
        unknown = [key for key in options if key not in signature.parameters]
        hint = f"; {did_you_mean(unknown[0], signature.parameters)}" if unknown else ""
        raise ValueError(f"{name}: {error}{hint}") from None


def around(name: str) -> list[str]:
    """The names of the modules around a module or tensor, from the outermost on, without the whole model.

    >>> around("layer1.0.weight"), around("head")
    (['layer1', 'layer1.0'], [])
    """
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
