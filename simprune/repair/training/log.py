"""The lines of a training: one JSON object per step and per epoch, and the same for TensorBoard."""

import json
from pathlib import Path
from typing import Any

from simprune.core.plain import finite
from simprune.core.store import write_whole

FILE = "training.jsonl"


class Log:
    """A file of JSON lines in the folder of a training; without a folder nothing is written.

    Args:
        folder: of the training; None for none.
        steps: that are done where a training goes on; lines of later ones are removed, since they are done again.
        tensorboard: whether TensorBoard gets the figures as well.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Log(Path(folder)).write(1, {"loss": 0.5})
    ...     Path(folder, "training.jsonl").read_text()
    '{"step": 1, "loss": 0.5}\\n'
    """

    def __init__(self, folder: Path | None, steps: int = 0, tensorboard: bool = False) -> None:
        self.path, self.board = None if folder is None else folder / FILE, None
        if folder is None or self.path is None:
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps]
        write_whole(self.path, "".join(f"{line}\n" for line in kept))
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.board = SummaryWriter(str(folder), purge_step=steps + 1)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Add a line with figures after a step, which are numbered from 1 through all epochs."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite({"step": step} | figures)) + "\n")
        if self.board is not None:
            for name, value in figures.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard has not yet."""
        if self.board is not None:
            self.board.close()
            self.board = None
