"""What a long piece of work has finished so far: a folder with one file of tensors per stage. Data only, no pickle.

Every file is written aside and then renamed, so at any moment the folder is that of some finished stages.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

SETTINGS = "settings.json"
DASH = "\N{EN DASH}"
SECONDS = 60.0  # between two savings of a stage that is under way


@dataclass
class Kept:
    """A folder of finished stages, and what has to be the same for the work to go on from them (`context`).

    ValueError when the folder's stages were made with another context.
    """

    folder: Path
    context: Mapping[str, Any]
    seconds: float = SECONDS
    saved: float = field(default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        self.context = json.loads(json.dumps(self.context, sort_keys=True, default=str))
        if not self.started:
            return
        there = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        refuse_other_settings(self.folder, there, self.context)

    @property
    def started(self) -> bool:
        return (self.folder / SETTINGS).is_file()

    def load(self, stage: str) -> dict[str, Tensor] | None:
        """Tensors of a finished stage, or None."""
        path = self.folder / f"{stage}.safetensors"
        return load_file(path) if self.started and path.is_file() else None

    def save(self, stage: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a stage, in place of what was kept of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.started:
            write_whole(self.folder / SETTINGS, json.dumps(self.context, indent=1))
        apart = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        write_whole(self.folder / f"{stage}.safetensors", lambda path: save_file(apart, path))
        self.saved = time.monotonic()

    def save_now_and_then(self, stage: str, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Keep a stage that is under way, if the last time is some `seconds` ago."""
        if time.monotonic() - self.saved >= self.seconds:
            self.save(stage, tensors())

    def clear(self) -> None:
        """The work is done: nothing is kept any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_whole(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file aside, flush it to disk and rename it: at any moment it is whole, the earlier or the new one.

    Args:
        path: of the file; its folder is made if it is missing.
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
        partial.unlink(missing_ok=True)  # already renamed, unless something went wrong
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


def refuse_other_settings(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError with the first setting that differs between the work in a folder and the work that goes on."""
    known, wanted = dict(settings(there)), dict(settings(here))
    # what a user set comes first: differences of the original's figures only follow from it
    for key in sorted(known.keys() | wanted.keys(), key=lambda key: (key.startswith("original"), key)):
        if known.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder} was made with other settings ({key}: {known.get(key)} there, {wanted.get(key)} now); "
                "go on with the same ones, or start in a new folder"
            )


def finite(value: Any) -> Any:
    """The same nested value with every NaN or infinity replaced by None, which is what JSON can hold.

    >>> finite({"a": [1.0, float("nan")], "b": "text"})
    {'a': [1.0, None], 'b': 'text'}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def settings(value, prefix="") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text) rows.

    >>> settings({"budget": {"macs": 0.5}, "structures": ["channels", "blocks"], "finetune": None})
    [('budget.macs', '0.5'), ('structures', 'channels, blocks'), ('finetune', '–')]
    """
    if isinstance(value, dict) and value:
        start = f"{prefix}." if prefix else ""
        return [row for key, item in value.items() for row in settings(item, f"{start}{key}")]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(str(item) for item in value) or DASH)]
    return [(prefix, DASH if value is None or value == {} else str(value))]
