"""metrics.jsonl: a line with a JSON object for each logged point. Every run writes it; reports are made from it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from common.errors import UsageError, WorkError
from common.files import atomic_path

FILE_NAME = "metrics.jsonl"
POINT_KEYS = ("iteration", "step", "time")
NO_POINT = "not a JSON object of numbers"
MOST_LINE_BYTES = 2**20
MOST_NUMBERS = 2_000_000  # some 200 MB in memory; twice what a million iterations log at every tenth
LARGEST = sys.float_info.max  # JSON allows larger whole numbers, with which nothing can be computed


class JsonlTracker:
    """Appends to ``metrics.jsonl`` in the experiment's folder. A line is in the file when ``log`` returns.

    Raises WorkError if the file can't be written.
    """

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self.path = Path(FILE_NAME)

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Open the file. Id and options are already in the folder's config.yaml."""
        self.path = folder / FILE_NAME
        try:
            self.file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise WorkError(f"{self.path}: cannot be written ({error.strerror}); check its owner and mode") from error

    def view(self) -> str:
        """Nothing to say: the run names its files at its end."""
        return ""

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        """Write a point's line."""
        self._write(point_line(metrics, iteration, step).encode())

    def log_figure(self, name: str, html: str) -> None:
        """Nothing to do: the run's report has it."""

    def log_file(self, path: Path) -> None:
        """Nothing to do: the run's files lie in the same folder."""

    def finish(self, status: str) -> None:
        """Close the file. The log has the status."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def _write(self, line: bytes) -> None:
        """Write in one call, so that a killed run leaves whole lines. A full disk may still take only a part."""
        if self.file is None:
            raise RuntimeError("log before start, or after finish")
        try:
            written = self.file.write(line)
        except OSError as error:
            raise WorkError(f"{self.path}: cannot be written ({error.strerror}); make space and start again") from error
        if written != len(line):
            raise WorkError(f"{self.path}: cannot be written (the disk is full); make space and start again")


def point_line(metrics: Mapping[str, float], iteration: int, step: int) -> str:
    """Return the line {"iteration", "step", "time" (seconds since 1970), name: value, ...} of a point.

    Values are floats with all their digits. One that is not finite becomes null, since JSON can't write it.
    """
    reserved = [key for key in POINT_KEYS if key in metrics]
    if reserved:
        raise ValueError(f"a metric can't be named {', '.join(reserved)}: the point itself has it")
    values = {name: float(value) for name, value in metrics.items()}
    point = {
        "iteration": int(iteration),
        "step": int(step),
        "time": round(time.time(), 3),
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
    }
    return json.dumps(point, allow_nan=False) + "\n"


def read_metrics(path: Path, *, brief: bool = False) -> list[dict[str, float | None]]:
    """Return the points of a metrics.jsonl in file order; null is None. A last line cut by a kill is left out.

    ``brief``: only the points of validations and the last one. Raises UsageError if there is no file, WorkError, with
    the line's number, for any other line that is not an object of numbers with an iteration, and for a file of more
    than ``MOST_NUMBERS``.
    """
    points: list[dict[str, float | None]] = []
    final: dict[str, float | None] | None = None
    numbers = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_BYTES), b""), start=1):
                point = _parse(line)
                if point is None and (line.endswith(b"\n") or file.read(1)):  # else it is the last line, cut by a kill
                    raise WorkError(f"{path}, line {number}: {NO_POINT}; the file was changed by hand or is damaged")
                final = point or final
                if point is not None and (not brief or _is_validation(point)):
                    points.append(point)
                    numbers += len(point)
                if numbers > MOST_NUMBERS:
                    raise WorkError(f"{path}: more than {MOST_NUMBERS:,} numbers; it is no run's file")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such file; an experiment's folder has one as soon as it trains") from None
    except OSError as error:
        raise WorkError(f"{path}: cannot be read ({error.strerror}); check its owner and mode") from error
    if final is not None and (not points or points[-1] is not final):
        points.append(final)
    return points


def cut_metrics(path: Path, iteration: int, validated: int) -> None:
    """Cut the file back to a checkpoint, and to whole lines. Without a file do nothing.

    The checkpoint was saved after ``iteration`` micro-batches; the last validation came after ``validated``.
    """
    if not path.exists():
        return
    kept = [
        line
        for line, point in ((line, _parse(line)) for line in path.read_bytes().splitlines())
        if point is not None and _belongs(point, iteration, validated)
    ]
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))


def _belongs(point: Mapping[str, float | None], iteration: int, validated: int) -> bool:
    at = point.get("iteration", 0)
    return at < iteration or (at == iteration and (validated == iteration or not _is_validation(point)))


def _is_validation(point: Mapping[str, float | None]) -> bool:
    return any(key.startswith("valid") for key in point)


def _parse(line: bytes) -> dict[str, float | None] | None:
    """Return a line's point, or None unless it is an object of finite numbers and nulls with an iteration."""
    try:
        point = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested thousands deep
        return None
    if not isinstance(point, dict) or type(at := point.get("iteration")) is not int or not 0 <= at < 2**53:
        return None
    if not all(value is None or (type(value) in (int, float) and abs(value) <= LARGEST) for value in point.values()):
        return None
    return {sys.intern(name): value for name, value in point.items()}  # keep a name once, not for each point
