"""Summaries of experiments, a few kilobytes each, for the leaderboard and for other experiments' reports.

Reading thousands of folders takes minutes. So the summaries are kept in a file beside the leaderboard, and a folder is
read again only if the inode, size or time of one of its files changed. The kept file can be deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import WorkError
from common.experiments.folder import CONFIG, ENVIRONMENT
from common.files import write_text
from common.foreign import LARGEST_INTEGER, plain_values
from common.reports.record import (
    FINISHED,
    LINEAGE_FILE,
    STATUS_FILE,
    Record,
    experiment_folders,
    read_record,
    read_status,
)
from common.trackers.jsonl import FILE_NAME, MOST_LINE_BYTES

KEPT_FILE = ".leaderboard.jsonl"
FILES = (CONFIG, ENVIRONMENT, FILE_NAME, STATUS_FILE, LINEAGE_FILE)
FORM = 3  # version of the kept lines; for a line of another version the folder is read again


@dataclass(frozen=True)
class Summary:
    """An experiment in short; see :class:`Record` for the other fields.

    ``best``: best value of the metric, its iteration and weights; None: never validated. ``scores``: the other
    validation metrics at that iteration. ``started``: ISO 8601, empty if unknown.
    """

    name: str
    config: Mapping[str, Any]
    status: str
    best: tuple[float, int, str] | None
    scores: Mapping[str, float | None]
    hours: float
    started: str
    problems: tuple[str, ...]
    unknown_lineage: tuple[str, ...] = ()


def summarize(record: Record, metric: str) -> Summary:
    """Summarize a record at the best value of ``metric``."""
    best, scores = record.best(metric), {}
    if best is not None:
        prefix = "valid/" if best[2] == "raw" else f"valid_{best[2]}/"
        for key in record.keys:
            if key.startswith(prefix) and key != prefix + metric:
                value = dict(zip(*record.series(key), strict=True)).get(best[1])
                scores[key.removeprefix(prefix)] = None if value is None or value != value else float(value)
    return Summary(
        record.name,
        record.config,
        record.status,
        None if best is None else (float(best[0]), *best[1:]),
        scores,
        round(record.seconds / 3600, 3),
        record.started.isoformat(timespec="seconds") if record.started else "",
        record.problems,
        record.unknown_lineage,
    )


def read_summaries(results: Path, metric: str, known: Mapping[Path, str] | None = None) -> list[Summary]:
    """Return the summaries of all experiments below a folder, sorted by path, and keep them for the next call.

    ``known``: statuses by experiment folder that replace the ones read, such as that of a run which is ending now.
    """
    kept = _read_kept(results / KEPT_FILE, metric)
    found, lines = [], []
    for folder in experiment_folders(results):
        name, signature = folder.relative_to(results).as_posix(), _signature(folder)
        line, old = kept.get(name, (None, None))
        if old is None or old["files"] != signature:
            summary = replace(summarize(read_record(folder, brief=True), metric), name=name)
            content = {"form": FORM, "metric": metric, "files": signature, "summary": asdict(summary)}
            line = json.dumps(content)
        else:
            summary = _kept_summary(old["summary"])
            if summary.status != FINISHED:  # another process may have taken or released its lock since
                summary = replace(summary, status=read_status(folder))
        lines.append(line)
        found.append(replace(summary, status=known[folder]) if known and folder in known else summary)
    if lines != [line for line, _ in kept.values()]:
        with suppress(WorkError):  # without the file, all folders are read each time
            write_text(results / KEPT_FILE, "".join(f"{line}\n" for line in lines))
    return found


def _read_kept(path: Path, metric: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return by name each valid kept line and its content."""
    whole = ((line, content) for line, content in _kept_lines(path) if _is_kept(line, content, metric))
    return {content["summary"]["name"]: (line, content) for line, content in whole}


def _kept_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with suppress(OSError, ValueError, RecursionError), path.open(encoding="utf-8") as file:
        for line in iter(lambda: file.readline(MOST_LINE_BYTES), ""):
            yield line.rstrip("\n"), json.loads(line)


def _kept_summary(content: Mapping[str, Any]) -> Summary:
    summary = Summary(**content)
    best = None if summary.best is None else tuple(summary.best)
    problems, unknown = tuple(summary.problems), tuple(summary.unknown_lineage)
    return replace(summary, best=best, problems=problems, unknown_lineage=unknown)


def _is_kept(line: str, content: Any, metric: str) -> bool:
    """Whether a line holds a summary by ``metric`` in the form that this program writes."""
    try:
        summary = _kept_summary(content["summary"])
        best = summary.best
        texts = (summary.name, summary.status, summary.started, *summary.problems, *summary.unknown_lineage)
        return (
            (content["form"], content["metric"]) == (FORM, metric)
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(part, dict) for part in (summary.config, summary.scores))
            and all(value is None or isinstance(value, float) for value in (summary.hours, *summary.scores.values()))
            and (best is None or [type(part) for part in best] == [float, int, str])
            and (_is_flat(line, summary.config) or plain_values(summary.config) is not None)
        )
    except (KeyError, TypeError, ValueError):
        return False


def _is_flat(line: str, config: Mapping[str, Any]) -> bool:
    """Whether options are obviously plain. The full check would take half of the time for thousands of lines."""
    return "\\u" not in line and all(
        value is None or type(value) in (bool, float, str) or (type(value) is int and abs(value) <= LARGEST_INTEGER)
        for value in config.values()
    )


def _signature(folder: Path) -> list[list[int]]:
    """Return inode, size and time of each file behind a summary; zeros for a missing file."""
    found = []
    for name in FILES:
        try:
            facts = (folder / name).stat()
            found.append([facts.st_ino, facts.st_size, facts.st_mtime_ns])
        except OSError:
            found.append([0, 0, 0])
    return found
