"""The lines of a training: one JSON object per step and per epoch, and the same for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from simprune.core.plain import finite
from simprune.core.store import append_whole, write_whole
from simprune.repair.training.board import Board

FILE = "training.jsonl"
BEFORE = "training-before.jsonl"  # the log of an earlier training in the same folder


class Log:
    """A file of JSON lines in the folder of a training; without a folder nothing is written.

    Every line is written whole, or an error is raised that names the file.

    Args:
        folder: of the training; None for none.
        steps: that are done where a training goes on; lines of later ones are removed, since they are done again. None
            where it begins: what an earlier one has written becomes `BEFORE`.
        tensorboard: whether TensorBoard gets the figures as well.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Log(Path(folder)).write(1, {"loss": 0.5})
    ...     Path(folder, "training.jsonl").read_text()
    '{"step": 1, "loss": 0.5}\\n'
    """

    def __init__(self, folder: Path | None, steps: int | None = None, tensorboard: bool = False) -> None:
        self.path, self.board = None if folder is None else folder / FILE, None
        if folder is None or self.path is None:
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        if steps is None and lines:
            self.path.replace(self.path.with_name(BEFORE))
        done = [line for line in lines if 0 < _step(line) <= (steps or 0)]
        write_whole(self.path, "".join(f"{line}\n" for line in done))
        self.board = Board(folder, steps or 0) if tensorboard else None

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Add a line with figures after a step, which are numbered from 1 through all epochs."""
        if self.path is None:
            return
        append_whole(self.path, (json.dumps(finite({"step": step} | figures)) + "\n").encode())
        if self.board is not None:
            self.board.write(step, {name: value for name, value in figures.items() if isinstance(value, float)})


def _step(line: str) -> int:
    """The step that a line is of; 0 for one that was cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
