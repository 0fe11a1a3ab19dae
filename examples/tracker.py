"""A tracker of your own: it writes metrics.csv into the experiment's folder.

python train.py --trackers=examples.tracker.CSV
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.trackers.table import TrackerRow


class CsvTracker:
    """A line for each value: iteration, step, name, value."""

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        self.path = folder / "metrics.csv"

    def view(self) -> str:
        return f"csv: {self.path}"

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        with self.path.open("a") as file:
            for name, value in metrics.items():
                file.write(f"{iteration},{step},{name},{value!r}\n")

    def log_figure(self, name: str, html: str) -> None:
        """Nothing to do: a table holds no figures."""

    def log_file(self, path: Path) -> None:
        """Nothing to do: the run's files lie in the same folder."""

    def finish(self, status: str) -> None:
        """Nothing to do: every line is written when it is logged."""


CSV = TrackerRow("csv", "metrics.csv", path="examples.tracker.CsvTracker", module="csv", install="Python")
