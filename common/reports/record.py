"""Read an experiment's folder in whatever state it is: options, environment, logged points, best value, status."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.evaluation.metric_table import metric_of
from common.evaluation.metrics import levels_of
from common.experiments.folder import CONFIG, ENVIRONMENT, is_in_progress
from common.files import write_json, write_text
from common.foreign import read_json, read_yaml
from common.trackers.jsonl import FILE_NAME, point_line, read_metrics

STATUS_FILE = "status.json"
REPORT_FILE = "report.html"
LINEAGE_FILE = "lineage.json"  # names the networks whose training images are unknown
RUNNING = "running"
FINISHED = "finished"
FAILED = "failed"
STOPPED = "interrupted"  # by a signal, its state saved
KILLED = "killed"
UNKNOWN = "unknown"  # of a run by a version that wrote no status
STATUSES = (RUNNING, FINISHED, FAILED, STOPPED)  # in status.json
DEEPEST = 3  # levels of folders: a search, a cross-validation in it, its fold
MOST_OPTIONS = 1000  # of an experiment; train.py has some 150


@dataclass(frozen=True)
class Record:
    """An experiment as read from its folder; what can't be read is empty.

    ``name``: its path below the results' folder. ``config``: options, flat and plain. ``points``: those of
    metrics.jsonl. ``status``: running, finished, failed, interrupted, killed (it wrote no end) or unknown.
    ``problems``: which files can't be read, and why. ``unknown_lineage``: the networks behind its result whose training
    images are unknown. They may have been trained on the images that judge it.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    points: list[dict[str, float | None]]
    status: str
    problems: tuple[str, ...] = ()
    unknown_lineage: tuple[str, ...] = ()

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return iterations and values of one metric; non-finite values are NaN."""
        known = [point for point in self.points if key in point]
        values = [point[key] for point in known]
        return [point["iteration"] for point in known], [float("nan") if v is None else v for v in values]

    @cached_property
    def keys(self) -> list[str]:
        """The names of all metrics."""
        return sorted({key for point in self.points for key in point})

    def best(self, metric: str) -> tuple[float, int, str] | None:
        """Return the best value of a validation metric, its iteration, and the weights that reached it (raw, ema).

        The metric's row says which value is best. None if the experiment was never validated.
        """
        found = []
        for key in self.keys:
            group, _, name = key.partition("/")
            if name == metric and group.split("_")[0] == "valid":
                weights = group.partition("_")[2] or "raw"
                found += [(value, at, weights) for at, value in zip(*self.series(key), strict=True) if value == value]
        row = metric_of(metric)
        return min(found, key=lambda point: (row.rank(point[0]), *point[1:]), default=None)

    def judged_by(self, metric: str) -> str:
        """Return ``metric``, or its key by study if the experiment was validated by studies alone."""
        return next((key for key in levels_of(metric) if self.best(key)), metric)

    @property
    def seconds(self) -> float:
        """Return the seconds from the first start to the last logged point; pauses before a resume count."""
        times = [point["time"] for point in self.points if point.get("time") is not None]
        if not times or self.started is None:
            return 0.0
        return max(0.0, times[-1] - self.started.timestamp())

    @property
    def started(self) -> datetime | None:
        """Return when the run was first started; a time without a zone is taken as UTC."""
        try:
            started = datetime.fromisoformat(self.environment["started"])
        except (KeyError, TypeError, ValueError):
            return None
        started = started if started.tzinfo else started.replace(tzinfo=UTC)
        return started if 1970 < started.year < 9999 else None  # timestamp() fails beyond


def write_status(folder: Path, status: str) -> None:
    """Write an experiment's status to its folder."""
    write_json(folder / STATUS_FILE, {"status": status})


def write_unknown_lineage(folder: Path, names: Sequence[str]) -> None:
    """Write the networks of unknown lineage behind an experiment's result to its folder; an empty list if none."""
    write_json(folder / LINEAGE_FILE, {"unknown": list(names)})


def write_value(folder: Path, metrics: Mapping[str, float], iteration: int = 0) -> None:
    """Log the validation metrics of an experiment made from others; they replace all earlier ones."""
    named = {f"valid/{name}": value for name, value in metrics.items()}
    write_text(folder / FILE_NAME, point_line(named, iteration, 0))


def results_folder(folder: Path) -> Path:
    """Return the folder of all experiments: the one above an experiment, or above the cross-validation of a fold."""
    return folder.parent.parent if (folder.parent / CONFIG).is_file() else folder.parent


def read_record(folder: Path, status: str | None = None, *, brief: bool = False) -> Record:
    """Read an experiment's folder; ``status`` replaces the status in the folder.

    ``brief``: read only the validations' points and the last one, since thousands of long runs would fill the memory.
    Anybody may have made the folder: what can't be read, or is too large or too deep, is left empty and named in
    ``problems``.
    """
    problems: list[str] = []
    points = []
    if (folder / FILE_NAME).exists():
        try:
            points = read_metrics(folder / FILE_NAME, brief=brief)
        except UserError as error:
            problems.append(str(error).removeprefix(f"{folder}/"))
    config = _mapping(folder / CONFIG, read_yaml, problems)
    if len(config) > MOST_OPTIONS:
        problems.append(f"{CONFIG}: more than {MOST_OPTIONS} options")
        config = {}
    unknown = _texts(_mapping(folder / LINEAGE_FILE, read_json, problems).get("unknown"))
    return Record(
        folder.relative_to(results_folder(folder)).as_posix(),
        folder,
        config,
        _mapping(folder / ENVIRONMENT, read_json, problems),
        points,
        status or read_status(folder, problems),
        tuple(problems),
        unknown,
    )


def experiment_folders(results: Path) -> list[Path]:
    """Return the folders of all experiments below a folder, sorted; those of searches and of folds are included."""
    found: list[str] = []
    around = [(str(results), 0)]
    while around:
        folder, depth = around.pop()
        with suppress(OSError), os.scandir(folder) as entries:  # quicker than glob, which lists anew for each pattern
            for entry in entries:
                if entry.name == CONFIG and depth:
                    found.append(folder)
                elif depth < DEEPEST and entry.is_dir():
                    around.append((entry.path, depth + 1))
    return sorted(map(Path, found))


def read_status(folder: Path, problems: list[str] | None = None) -> str:
    """Return an experiment's status; an unreadable file is added to ``problems``."""
    noted = _mapping(folder / STATUS_FILE, read_json, [] if problems is None else problems).get("status")
    status = noted if noted in STATUSES else UNKNOWN
    if status != FINISHED and is_in_progress(folder):  # a finished run holds its lock while it writes its report
        return RUNNING
    return KILLED if status == RUNNING else status


def duration(seconds: float) -> str:
    """Return a length of time in seconds, minutes or hours: ``90 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _mapping(path: Path, read: Callable[[Path], Any], problems: list[str]) -> dict[str, Any]:
    try:
        content = read(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        content, reason = None, error.strerror
    except ValueError as error:
        content, reason = None, str(error)
    else:
        reason = "not a list of names with values"
    if isinstance(content, dict):
        return content
    problems.append(f"{path.name}: {reason}")
    return {}
