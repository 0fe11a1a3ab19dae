"""trackio: a dashboard on this machine, live while runs go on, several at once; nothing leaves the machine."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.trackers.bounded import shareable

FOLDER = ".trackio"  # beside the experiments; SQLite files, which must lie on a local disk
PLACE = "TRACKIO_DIR"


class TrackioTracker:
    """Writes to the project named after the results' folder, a run for each experiment.

    The dashboard's files lie in TRACKIO_DIR, or in ``.trackio`` beside the experiments. A killed run loses about half a
    second.
    """

    def __init__(self) -> None:
        self.run: Any = None
        self.results = Path()
        self.iteration = 0

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault(PLACE, str(folder.parent.resolve() / FOLDER))
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # it greets at length
            self.run = trackio.init(
                project=folder.parent.name or "results",
                name=experiment_id,
                config={name: shareable(value) for name, value in config.items()},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.results = folder.parent

    def view(self) -> str:
        return f"trackio: live curves: bash train.sh dashboard {shlex.quote(str(self.results))}"

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        values = {**metrics, "train/optimizer_step": step}  # "step" is trackio's own word
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.run.log(finite, step=iteration)
        self.iteration = iteration

    def log_figure(self, name: str, html: str) -> None:
        """Show it beside the last values."""
        import trackio

        self.run.log({name: trackio.Html(html, inject=False)}, step=self.iteration)

    def log_file(self, path: Path) -> None:
        """Nothing to do: the run's files lie on the same machine."""

    def finish(self, status: str) -> None:
        run, self.run = self.run, None
        if run is not None:
            import trackio

            with contextlib.redirect_stdout(io.StringIO()):
                trackio.finish()
