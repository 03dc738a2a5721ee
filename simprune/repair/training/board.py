"""Figures of a training as events for TensorBoard."""

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simprune.core.store import append_whole


class Board:
    """A file of events, to which every event is added whole.

    The writer of tensorboard itself writes in a thread, whose errors, as on a full disk, come late and as a traceback.

    Args:
        folder: of the training.
        steps: that are done where a training goes on; TensorBoard leaves out earlier events of later steps.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # pyright: ignore[reportMissingImports]

        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        self.path = folder / f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}"
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(self._events.Event(step=steps + 1, file_version="brain.Event:2"))
        self._add(self._events.Event(step=steps + 1, session_log=start))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add an event with figures after a step."""
        of = self._summaries.Summary
        values = [of.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._add(self._events.Event(step=step, summary=of(value=values)))

    def _add(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # pyright: ignore[reportMissingImports]

        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append_whole(self.path, record.getvalue())
