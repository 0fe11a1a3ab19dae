"""What an experiment's folder tells of it, in whatever state it is: options, environment, points, best value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.experiment import CONFIG, ENVIRONMENT, is_in_progress
from common.files import write_json, write_text
from common.trackers.jsonl import FILE_NAME, point_line, read_metrics

STATUS_FILE = "status.json"
REPORT_FILE = "report.html"
RUNNING = "running"
FINISHED = "finished"
KILLED = "killed"
UNKNOWN = "unknown"  # of a run by a version that did not note it


@dataclass(frozen=True)
class Record:
    """An experiment as its folder tells of it; what can't be read is empty.

    ``name``: its path below the results' folder. ``config``: options, flat and plain. ``points``: those of
    metrics.jsonl. ``status``: running, finished, failed,
    interrupted, killed (it ended without a word) or unknown.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    points: list[dict[str, float | None]]
    status: str

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return iterations and values of one metric; what was not finite is NaN."""
        known = [point for point in self.points if key in point]
        values = [point[key] for point in known]
        return [point["iteration"] for point in known], [float("nan") if v is None else v for v in values]

    @cached_property
    def keys(self) -> list[str]:
        """The names of all metrics."""
        return sorted({key for point in self.points for key in point})

    def best(self, metric: str) -> tuple[float, int, str] | None:
        """Return the lowest value of a validation metric, its iteration, and the weights that reached it (raw, ema).

        None where the experiment was never validated.
        """
        found = []
        for key in self.keys:
            group, _, name = key.partition("/")
            if name == metric and group.split("_")[0] == "valid":
                weights = group.partition("_")[2] or "raw"
                found += [(value, at, weights) for at, value in zip(*self.series(key), strict=True) if value == value]
        return min(found, default=None)

    @property
    def seconds(self) -> float:
        """Return the time from the first start to the last point that was logged (pauses between resumes count)."""
        times = [point["time"] for point in self.points if point.get("time") is not None]
        if not times or self.started is None:
            return 0.0
        return max(0.0, times[-1] - self.started.timestamp())

    @property
    def started(self) -> datetime | None:
        """Return when the run was first started."""
        try:
            return datetime.fromisoformat(self.environment["started"])
        except (KeyError, TypeError, ValueError):
            return None


def write_status(folder: Path, status: str) -> None:
    """Note in the experiment's folder how it goes or ended."""
    write_json(folder / STATUS_FILE, {"status": status})


def write_value(folder: Path, metrics: Mapping[str, float], iteration: int = 0) -> None:
    """Log validation metrics as the only ones of an experiment that was put together of others, in place of earlier."""
    named = {f"valid/{name}": value for name, value in metrics.items()}
    write_text(folder / FILE_NAME, point_line(named, iteration, 0))


def results_folder(folder: Path) -> Path:
    """Return the folder of all experiments: the one above an experiment's, or above the cross-validation it is in."""
    return folder.parent.parent if (folder.parent / CONFIG).is_file() else folder.parent


def read_record(folder: Path, status: str | None = None) -> Record:
    """Read an experiment's folder; ``status`` is what the experiment itself knows better."""
    try:
        points = read_metrics(folder / FILE_NAME)
    except UserError:  # never trained, or changed by hand: the rest can be shown all the same
        points = []
    return Record(
        folder.relative_to(results_folder(folder)).as_posix(),
        folder,
        _mapping(folder / CONFIG, yaml.safe_load),
        _mapping(folder / ENVIRONMENT, json.loads),
        points,
        status or _status(folder),
    )


def read_records(results: Path, known: Mapping[Path, str] | None = None, brief: bool = False) -> list[Record]:
    """Read all experiments below a folder, those of a cross-validation's folds too, sorted by name.

    ``known``: by an experiment's folder the status that the experiment itself knows better. ``brief``: only points of
    validations and the last one, since thousands of long runs would fill the memory.
    """
    if not results.is_dir():
        return []
    folders = sorted({path.parent for pattern in ("*", "*/*") for path in results.glob(f"{pattern}/{CONFIG}")})
    records = (read_record(folder, (known or {}).get(folder)) for folder in folders)
    return [_brief(record) for record in records] if brief else list(records)


def _brief(record: Record) -> Record:
    points = record.points
    kept = [point for point in points if point is points[-1] or any(key.startswith("valid") for key in point)]
    return replace(record, points=kept)


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _status(folder: Path) -> str:
    status = str(_mapping(folder / STATUS_FILE, json.loads).get("status", UNKNOWN))
    if status != FINISHED and is_in_progress(folder):  # a finished run holds its lock while it writes its report
        return RUNNING
    return KILLED if status == RUNNING else status


def duration(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
