"""Whose code an error comes from: simprune's, a library's, or the user's, with function, file and line."""

import re
import site
import sysconfig
import traceback
from pathlib import Path
from types import CodeType, FrameType

PACKAGE = str(Path(__file__).resolve().parents[1])
LIBRARIES = tuple(
    dict.fromkeys(
        [*site.getsitepackages(), site.getusersitepackages(), *map(sysconfig.get_path, ("stdlib", "purelib"))]
    )
)
# how DataLoader hands on an error of another process: its text holds the traceback
WORKER = re.compile(r"Caught \w+ in DataLoader worker process")
WORKER_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
WORKER_ERROR = re.compile(r"^(?P<error>\w+(\.\w+)*: .*)$", re.MULTILINE)


def users_line(error: BaseException) -> str | None:
    """One line on an error that a function of the user's raised, with its name, file and line; None for any other.

    An error is the user's where simprune calls the user's code, and that code, or a library that it calls, raises. What
    a model raises while it runs is left out: simprune edits models, so the fault may be its own.

    >>> users_line(ValueError("raised by nobody"))
    """
    if WORKER.match(text := str(error.args[0]) if error.args else ""):
        return _line_of_worker(text)
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    kinds = [_owner(code.co_filename) for code, _ in frames]
    ours = [index for index, kind in enumerate(kinds) if kind == "simprune"]
    users = [index for index, kind in enumerate(kinds) if kind == "user"]
    if not ours or not users or users[-1] < ours[-1]:
        return None
    first = next(index for index in users if index > ours[-1])
    if any(_runs_a_model(code) for code, _ in frames[ours[-1] : first]):
        return None
    code, line = frames[users[-1]]
    return f"{_described(error)} ({code.co_qualname} in {code.co_filename}, line {line})"


def raised_by_a_model(error: BaseException) -> bool:
    """Whether an error came out of the forward pass of a module.

    >>> raised_by_a_model(ValueError("raised by nobody"))
    False
    """
    return any(_runs_a_model(frame.f_code) for frame, _ in traceback.walk_tb(error.__traceback__))


def failing_module(error: BaseException) -> str | None:
    """The name, within the model that ran, of the innermost module in whose forward pass an error was raised.

    Returns:
        "" for the model itself; None where no forward pass raised it, or simprune's own code in one.

    >>> import torch
    >>> from torch import nn
    >>> try:
    ...     nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3))(torch.zeros(1, 2))
    ... except RuntimeError as error:
    ...     print(failing_module(error))
    1
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [index for index, frame in enumerate(frames) if _owner(frame.f_code.co_filename) == "simprune"]
    last = ours[-1] + 1 if ours else 0
    running = [frame.f_locals.get("self") for frame in frames[last:] if _runs_a_model(frame.f_code)]
    if not running or running[0] is None:
        return None
    names = {id(module): name for name, module in running[0].named_modules()}
    return names.get(id(running[-1]), "")


def forward_of(error: BaseException) -> tuple[str, FrameType] | None:
    """The innermost forward pass, written neither by torch nor by simprune, in which an error was raised.

    Returns:
        The name of its module within the model that ran, and the frame; None where there is no such forward pass.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    calls = [index for index, frame in enumerate(frames) if _runs_a_model(frame.f_code)]
    if not calls:
        return None
    torch = str(Path(frames[calls[0]].f_code.co_filename).parents[2])
    for index in reversed(range(calls[0], len(frames))):
        file = frames[index].f_code.co_filename
        if not file.startswith((torch, PACKAGE)):
            model, module = (frames[call].f_locals["self"] for call in (calls[0], max(c for c in calls if c < index)))
            names = {id(part): name for name, part in model.named_modules()}
            return names.get(id(module), ""), frames[index]
    return None


def with_line(error: BaseException) -> str:
    """The type of an error, the first line of its text, and the innermost line of code outside of libraries.

    >>> try:
    ...     {}["images"]
    ... except KeyError as error:
    ...     print(with_line(error).partition(" (")[0])
    KeyError: 'images'
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _owner(frame.filename) == "user"] or frames
    return f"{_described(error)} ({own[-1].filename}, line {own[-1].lineno})"


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": ")


def _line_of_worker(text: str) -> str | None:
    frames = [match for match in WORKER_FRAME.finditer(text) if _owner(match["file"]) == "user"]
    if not frames:
        return None
    said = [match["error"] for match in WORKER_ERROR.finditer(text)]
    last = frames[-1]
    return f"{said[-1] if said else 'an error'} ({last['function']} in {last['file']}, line {last['line']})"


def _owner(file: str) -> str:
    if file.startswith(PACKAGE):
        return "simprune"
    return "library" if file.startswith(("<", *LIBRARIES)) else "user"


def _runs_a_model(code: CodeType) -> bool:
    return code.co_name == "_call_impl" and Path(code.co_filename).name == "module.py"
