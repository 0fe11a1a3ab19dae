"""TensorBoard: event files below the experiment's folder; ``tensorboard --logdir output/results`` shows them all."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from common.trackers.bounded import shareable

FOLDER = "tensorboard"
FORMAT = "brain.Event:2"


class TensorBoardTracker:
    """Writes scalars by iteration, and the options as a table. A killed run keeps all that was logged.

    torch's SummaryWriter would do it too, but puts the host's name into the file's name.
    """

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self.records: Any = None
        self.results = Path()

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import text

        self.results = folder.parent
        (folder / FOLDER).mkdir(exist_ok=True)
        self.file = (folder / FOLDER / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}").open("ab")
        self.records = RecordWriter(self.file)
        rows = "\n".join(f"| {name} | {shareable(value)} |" for name, value in config.items())
        self._write(file_version=FORMAT)
        self._write(summary=text("options", f"| option | value |\n| --- | --- |\n{rows}"))

    def view(self) -> str:
        return f"tensorboard: curves of all experiments: tensorboard --logdir {shlex.quote(str(self.results))}"

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in {**metrics, "step": step}.items():
            if math.isfinite(value):
                self._write(summary=scalar(name, value), step=iteration)

    def log_figure(self, name: str, html: str) -> None:
        """Nothing to do: TensorBoard shows no documents, and the run's report has it."""

    def log_file(self, path: Path) -> None:
        """Nothing to do: the run's files lie in the same folder, and TensorBoard has no place for them."""

    def finish(self, status: str) -> None:
        from torch.utils.tensorboard.summary import text

        if self.file is not None:
            self._write(summary=text("status", status))
            self.file.close()
            self.file = None

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.records.write(Event(wall_time=time.time(), **event).SerializeToString())
        self.file.flush()
