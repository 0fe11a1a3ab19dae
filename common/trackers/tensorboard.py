"""TensorBoard: event files below the experiment's folder; ``tensorboard --logdir output/results`` shows them all."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.trackers.bounded import shareable

FOLDER = "tensorboard"
FLUSH_S = 10


class TensorBoardTracker:
    """Writes scalars by iteration and the options as a table."""

    def __init__(self) -> None:
        self.writer: Any = None
        self.results = Path()

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / FOLDER, flush_secs=FLUSH_S)
        self.results = folder.parent
        rows = "\n".join(f"| {name} | {shareable(value)} |" for name, value in config.items())
        self.writer.add_text("options", f"| option | value |\n| --- | --- |\n{rows}")

    def view(self) -> str:
        return f"tensorboard: curves of all experiments: tensorboard --logdir {shlex.quote(str(self.results))}"

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        for name, value in {**metrics, "step": step}.items():
            if math.isfinite(value):
                self.writer.add_scalar(name, value, iteration)

    def log_file(self, path: Path) -> None:
        """Nothing to do: the run's files lie in the same folder, and TensorBoard has no place for them."""

    def finish(self, status: str) -> None:
        if self.writer is not None:
            self.writer.add_text("status", status)
            self.writer.close()
            self.writer = None
