"""What a table of all experiments, and another experiment's report, need to know of each: a few kilobytes, kept.

Reading thousands of folders takes minutes. What was read of each is kept beside the leaderboard and read again only
where the size or time of one of its files changed. The kept file can be deleted at any time.
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
FORM = 3  # of the kept lines; another one is read anew


@dataclass(frozen=True)
class Summary:
    """An experiment in short. ``best``: best value of the metric, its iteration and weights; None: never validated.

    ``scores``: the other validation metrics there. ``started``: ISO 8601, empty where unknown. See :class:`Record`.
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
    """Return a record's summary by the best value of ``metric``."""
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
    """Return the summaries of all experiments below a folder, by their paths there, and keep them for the next time.

    ``known``: by an experiment's folder the status that the experiment itself knows better.
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
            if summary.status != FINISHED:  # its lock may have been taken or left since
                summary = replace(summary, status=read_status(folder))
        lines.append(line)
        found.append(replace(summary, status=known[folder]) if known and folder in known else summary)
    if lines != [line for line, _ in kept.values()]:
        with suppress(WorkError):  # who can't write it reads all folders each time
            write_text(results / KEPT_FILE, "".join(f"{line}\n" for line in lines))
    return found


def _read_kept(path: Path, metric: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return by name the kept line and its content; what is not whole is left out."""
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
    """Whether a line holds a summary by ``metric`` as this program wrote it."""
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
    """Whether options are plain without a closer look, which takes half of the time that thousands of lines need."""
    return "\\u" not in line and all(
        value is None or type(value) in (bool, float, str) or (type(value) is int and abs(value) <= LARGEST_INTEGER)
        for value in config.values()
    )


def _signature(folder: Path) -> list[list[int]]:
    """Return inode, size and time of each file that a summary is made of; zeros for one that there isn't."""
    found = []
    for name in FILES:
        try:
            facts = (folder / name).stat()
            found.append([facts.st_ino, facts.st_size, facts.st_mtime_ns])
        except OSError:
            found.append([0, 0, 0])
    return found
