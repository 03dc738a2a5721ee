"""Finding things by name: what somebody probably meant, and `package.module:function`."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any


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
    return f"known: {', '.join(known[:12])}{more}" if known else "there are none"


def importable(folder: Path | str) -> None:
    """Let modules in `folder` be imported, as Python does for the folder of a script."""
    folder = str(Path(folder).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def resolve(name: str) -> Callable:
    """The function (or class) that `package.module:function` names; the working folder is searched first.

    ValueError, with what was probably meant, when the name has another form, or the module or function is
    missing, or importing the module fails.

    >>> resolve("math:sqrt")(9)
    3.0
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"expected a name like package.module:function, got {name!r}")
    importable(Path.cwd())
    module = _import(module_name, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = did_you_mean(function_name, public)
        raise ValueError(f"{module_name} has no function {function_name!r}; {hint}")
    return function


def _import(module_name: str, name: str) -> Any:
    importlib.invalidate_caches()  # the file may be newer than the process
    parent, path = "", None
    for part in module_name.split("."):
        full = f"{parent}.{part}".strip(".")
        if find_spec(full) is None:
            siblings = [info.name for info in pkgutil.iter_modules(path)]
            where = f"in {parent}" if parent else f"in {Path.cwd()} or installed"
            raise ValueError(f"{name!r}: no module {part!r} {where}; {_near(part, siblings)}")
        try:
            module = importlib.import_module(full)
        except Exception as error:  # whatever the user's own module does while it is imported
            raise ValueError(f"importing {full} failed: {type(error).__name__}: {error}") from error
        parent, path = full, getattr(module, "__path__", [])
    return sys.modules[module_name]


def _near(word: str, known: list[str]) -> str:
    hint = did_you_mean(word, known)
    return hint if hint.startswith("did") else "run simprune from the folder that holds it, or install it"


def fit(function: Callable, options: Iterable[str], name: str) -> None:
    """Raise ValueError, with what was probably meant, unless `function` takes these keyword arguments.

    >>> fit(Path.cwd, ["folder"], "cwd")
    Traceback (most recent call last):
    ValueError: cwd(): got an unexpected keyword argument 'folder'; there are none
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
        taken = str(signature.replace(return_annotation=signature.empty))
        raise ValueError(f"{name}{taken}: {error}{hint}") from None
