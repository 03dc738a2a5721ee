"""What is said of an error: one line for wrong input, the traceback for a defect."""

import os
import sys
import traceback


def report(error: Exception) -> int:
    """Print what went wrong: one line for wrong input, the traceback for a defect; returns the exit code."""
    line = one_line(error)
    if line is None or os.environ.get("SIMPRUNE_TRACEBACK") == "1":
        traceback.print_exception(error)
    if line is None:
        return 70
    print(f"simprune: error: {line}", file=sys.stderr)
    return 2


def one_line(error: BaseException) -> str | None:
    """The message if the input was at fault, else None.

    Ours to blame on the input: what Hydra says of a recipe, problems with files, and every ValueError or KeyError with
    a sentence that simprune itself raised (a bare KeyError, or one from inside a library, is a defect).
    """
    text = None
    if "hydra" in sys.modules:  # else none of its errors can have been raised
        from simprune.cli.recipe import explain

        text = explain(error)
    if text is None and isinstance(error, OSError):
        text = str(error)
    if text is None and type(error) in (ValueError, KeyError):
        frames = list(traceback.walk_tb(error.__traceback__))
        text = str(error.args[0]) if error.args else ""
        if not frames[-1][0].f_globals.get("__name__", "").startswith("simprune") or " " not in text:
            return None
    return None if text is None else " ".join(text.split())
