"""Finished stages of long work, in a folder, so that the work can go on after an interruption."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from simprune.core import processes
from simprune.core.plain import settings
from simprune.core.reading import read_text
from simprune.core.store import write_whole
from simprune.core.weights import digest_of

SETTINGS = "settings.json"
SECONDS = 60.0  # between two savings of a stage that is still running


@dataclass
class Checkpoint:
    """A folder with one file of tensors per finished stage, and the settings that the work was started with.

    The folder holds data only, no pickle. Every file is written whole, so at any moment the folder is that of some
    finished stages. Of several processes the first alone reads and writes; all know what it has read.

    Args:
        folder: created when the first stage is saved.
        context: settings that have to be the same for the work to go on; whatever JSON can hold.
        seconds: how long `save_now_and_then` waits between two savings.

    Raises:
        ValueError: when the folder's stages were computed with another context.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoint(Path(folder), {"seed": 1}).save("scores", {"values": torch.ones(2)})
    ...     Checkpoint(Path(folder), {"seed": 1}).load("scores")
    {'values': tensor([1., 1.])}
    """

    folder: Path
    context: Mapping[str, Any]
    seconds: float = SECONDS
    saved: float = field(default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        self.context = json.loads(json.dumps(self.context, sort_keys=True, default=str))
        processes.once(self._refuse_others)

    def _refuse_others(self) -> None:
        """Raise ValueError where the folder's stages were computed with another context."""
        if self.started:
            path = self.folder / SETTINGS
            try:
                stored = json.loads(read_text(path))
                if not isinstance(stored, dict):
                    raise TypeError("no mapping")
            except (json.JSONDecodeError, RecursionError, TypeError) as error:
                raise ValueError(f"{path} holds no settings ({error}); start in a new folder") from None
            refuse_other_settings(self.folder, stored, self.context)

    @property
    def started(self) -> bool:
        """Whether the folder holds stages."""
        return (self.folder / SETTINGS).is_file()

    def load(self, stage: str) -> dict[str, Tensor] | None:
        """Tensors of a stage, by name; None when the stage was not saved; ValueError when its file has changed."""
        return processes.once(lambda: self._load(stage))

    def _load(self, stage: str) -> dict[str, Tensor] | None:
        path = self.folder / f"{stage}.safetensors"
        if not self.started or not path.is_file():
            return None
        changed = f"{path} has changed since it was saved; delete it, and the stage is computed again"
        try:
            with safe_open(path, framework="pt") as file:
                digest = (file.metadata() or {}).get("sha256")
            tensors = load_file(path)
        except SafetensorError:
            raise ValueError(changed) from None
        if digest != digest_of(tensors):
            raise ValueError(changed)
        return tensors

    def save(self, stage: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a stage, and replace what was saved of it before."""
        if not processes.first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.started:
            write_whole(self.folder / SETTINGS, json.dumps(self.context, indent=1))
        # safetensors refuses tensors that share their memory
        unshared = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {"sha256": digest_of(unshared)}
        write_whole(
            self.folder / f"{stage}.safetensors",
            lambda path: save_file(unshared, path, metadata),
        )
        self.saved = time.monotonic()

    def save_now_and_then(self, stage: str, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Save a stage that is still running, if the last saving is at least `seconds` ago."""
        if processes.first() and time.monotonic() - self.saved >= self.seconds:
            self.save(stage, tensors())

    def clear(self) -> None:
        """Remove the folder, when the work is done."""
        if not processes.first():
            return
        shutil.rmtree(self.folder, ignore_errors=True)


def refuse_other_settings(folder: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise ValueError with the first setting that differs between the work in a folder and the work that goes on.

    Args:
        folder: named in the message.
        stored: nested settings of the work in the folder.
        current: nested settings of the work that wants to go on.
    """
    known, wanted = dict(settings(stored)), dict(settings(current))
    # what a user set comes first: differences of the original's figures only follow from it
    for key in sorted(known.keys() | wanted.keys(), key=lambda key: (key.startswith("original"), key)):
        if known.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder} was made with other settings ({_cut(key)}: {_cut(known.get(key))} there, "
                f"{_cut(wanted.get(key))} now); "
                "go on with the same ones, or start in a new folder"
            )


def _cut(value: str | None) -> str:
    """A setting as it is shown, the start of it where it is long."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
