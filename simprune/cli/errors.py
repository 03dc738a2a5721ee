"""Errors as the command line prints them: one line for wrong input, the traceback for a defect."""

import os
import sys
import traceback

from simprune.core.blame import users_line

LONGEST = 900  # characters of a message


def report(error: Exception, told: bool = False) -> int:
    """Print an error unless it was told already, and return the exit code: 2 for wrong input, 70 for a defect."""
    line = one_line(error)
    if told:
        return 70 if line is None else 2
    if line is None or os.environ.get("SIMPRUNE_TRACEBACK") == "1":
        traceback.print_exception(error)
    if line is None:
        return 70
    print(f"simprune: error: {line}", file=sys.stderr)
    return 2


def one_line(error: BaseException) -> str | None:
    """The message if the input was at fault, else None.

    The input is at fault in errors of Hydra about a recipe, in errors of files, in what functions of the user raise,
    and in every ValueError or KeyError with a sentence that simprune itself raised. A bare KeyError, or one from inside
    a library, is a defect.
    """
    text = users_line(error)
    if text is None and "hydra" in sys.modules:  # else none of its errors can have been raised
        from simprune.cli.recipe.explain import explain

        text = explain(error)
    if text is None and isinstance(error, OSError):
        where = "a file that could not be read or written" if error.filename is None else error.filename
        said = f"{where}: {error.strerror}; choose another path, or see to rights and space there"
        text = said if error.strerror else str(error)
    if text is None and type(error) is ValueError and "embedded null byte" in str(error):
        text = "a path has a zero byte in it; expected the name of a file or folder"
    if text is None and type(error) in (ValueError, KeyError):
        frames = list(traceback.walk_tb(error.__traceback__))
        text = str(error.args[0]) if error.args else ""
        if not frames[-1][0].f_globals.get("__name__", "").startswith("simprune") or " " not in text:
            return None
    return None if text is None else _readable(" ".join(text.split()))


def _readable(line: str) -> str:
    """A line of at most `LONGEST` characters: what a damaged file says stands in the middle, what to do at the end.

    >>> len(_readable("x" * 5000 + "; delete it"))
    900
    """
    end = LONGEST // 3
    return line if len(line) <= LONGEST else f"{line[: LONGEST - end - 5]} ... {line[-end:]}"
