"""Summaries of experiments, a few kilobytes each, for the leaderboard and for other experiments' reports.

Reading thousands of folders takes minutes. So the summaries are kept in a file beside the leaderboard, and a folder is
read again only if the inode, size or time of one of its files changed. The kept file can be deleted at any time.

Most experiments share most options. So the kept file's first line has the options of one of them, and each other line
only those that differ. Reading them back shares the values too: equal ones are the same object.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import WorkError
from common.experiments.folder import CONFIG, ENVIRONMENT
from common.files import write_text
from common.foreign import LARGEST_INTEGER, plain_values
from common.reports.judgement import JUDGED_FILE, is_judgement, read_judgement
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
FILES = (CONFIG, ENVIRONMENT, FILE_NAME, STATUS_FILE, LINEAGE_FILE, JUDGED_FILE)
FORM = 5  # version of the kept lines; for a line of another version the folder is read again
MOST_POINTS = 40  # of a curve

Curve = tuple[Sequence[int], Sequence[float]]
NO_CURVE: Curve = ((), ())


@dataclass(frozen=True)
class Summary:
    """An experiment in short; see :class:`Record` for the other fields.

    ``metric``: the metric that judges it, by study where only studies have labels. ``best``: its best value, with
    iteration and weights; None: never validated. ``scores``: the other validation metrics at that iteration.
    ``started``: ISO 8601, empty if unknown. ``curve``: iterations and values of the metric, at most
    :data:`MOST_POINTS`. ``judged``: see :class:`common.reports.judgement.Judgement`, empty if the predictions were not
    judged.
    """

    name: str
    config: Mapping[str, Any]
    status: str
    metric: str
    best: tuple[float, int, str] | None
    scores: Mapping[str, float | None]
    hours: float
    started: str
    problems: tuple[str, ...]
    unknown_lineage: tuple[str, ...] = ()
    curve: Curve = NO_CURVE
    judged: Mapping[str, Any] = field(default_factory=dict)


def summarize(record: Record, metric: str) -> Summary:
    """Summarize a record at the best value of ``metric``, see :meth:`Record.judged_by`."""
    metric = record.judged_by(metric)
    best, scores, curve = record.best(metric), {}, NO_CURVE
    if best is not None:
        prefix = "valid/" if best[2] == "raw" else f"valid_{best[2]}/"
        curve = thinned(*record.series(prefix + metric))
        for key in record.keys:
            if key.startswith(prefix) and key != prefix + metric:
                value = dict(zip(*record.series(key), strict=True)).get(best[1])
                scores[key.removeprefix(prefix)] = None if value is None or value != value else float(value)
    return Summary(
        record.name,
        record.config,
        record.status,
        metric,
        None if best is None else (float(best[0]), *best[1:]),
        scores,
        round(record.seconds / 3600, 3),
        record.started.isoformat(timespec="seconds") if record.started else "",
        record.problems,
        record.unknown_lineage,
        curve,
        read_judgement(record.folder),
    )


def thinned(iterations: Sequence[int], values: Sequence[float]) -> Curve:
    """Return at most :data:`MOST_POINTS` points of a curve, evenly chosen with both ends, values to five digits."""
    known = [(int(at), float(f"{value:.5g}")) for at, value in zip(iterations, values, strict=True) if value == value]
    if len(known) > MOST_POINTS:
        known = [known[round(place * (len(known) - 1) / (MOST_POINTS - 1))] for place in range(MOST_POINTS)]
    return [at for at, _ in known], [value for _, value in known]


def read_summaries(results: Path, metric: str, known: Mapping[Path, str] | None = None) -> list[Summary]:
    """Return the summaries of all experiments below a folder, sorted by path, and keep them for the next call.

    ``known``: statuses by experiment folder that replace the ones read, such as that of a run which is ending now.
    """
    base, kept = _read_kept(results / KEPT_FILE, metric)
    found: list[tuple[str, Summary, list[list[int]]]] = []  # each with its kept line, "" if that has to be written
    for folder in experiment_folders(results):
        name = str(folder)[len(str(results)) + 1 :].replace(os.sep, "/")
        line, files, summary = kept.get(name, ("", None, None))
        signature = _signature(folder)
        if summary is None or files != signature:
            summary = replace(summarize(read_record(folder, brief=True), metric), name=name)
            found.append(("", summary, signature))
            continue
        if summary.status != FINISHED:  # another process may have taken or released its lock since
            summary = replace(summary, status=read_status(folder))
        found.append((line, summary, signature))
    largest = max((summary.config for _, summary, _ in found), key=len, default={})
    if 2 * len(base) < len(largest):  # for instance of an experiment whose options can't be read
        base, found = largest, [("", *rest) for _, *rest in found]
    lines = [line or _kept_line(summary, signature, metric, base) for line, summary, signature in found]
    if lines != [line for line, *_ in kept.values()]:
        head = json.dumps({"form": FORM, "metric": metric, "base": base})
        with suppress(WorkError):  # without the file, all folders are read each time
            write_text(results / KEPT_FILE, "".join(f"{line}\n" for line in (head, *lines)))
    summaries = [_sharing(summary, base) if not line else summary for line, summary, _ in found]
    if not known:
        return summaries
    return [replace(summary, status=known.get(results / summary.name, summary.status)) for summary in summaries]


def _kept_line(summary: Summary, signature: Sequence[Sequence[int]], metric: str, base: Mapping[str, Any]) -> str:
    config = summary.config
    changed = {name: value for name, value in config.items() if name not in base or not _same(base[name], value)}
    content = asdict(replace(summary, config=changed))
    absent = [name for name in base if name not in config]
    return json.dumps({"metric": metric, "files": signature, "absent": absent, "summary": content})


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other and not isinstance(one, (dict, list))


def _sharing(summary: Summary, base: Mapping[str, Any]) -> Summary:
    """Return a summary whose options are the objects in ``base`` where they are equal."""
    config = {
        name: base[name] if name in base and _same(base[name], value) else value
        for name, value in summary.config.items()
    }
    return replace(summary, config=config)


def _read_kept(path: Path, metric: str) -> tuple[dict[str, Any], dict[str, tuple[str, list[list[int]], Summary]]]:
    """Return the options in the kept file's first line, and by name each valid line, its signature and summary."""
    lines = _kept_lines(path)
    head, content = next(lines, ("", None))
    base = content.get("base") if isinstance(content, dict) else None
    usual = isinstance(base, dict) and (content.get("form"), content.get("metric")) == (FORM, metric)
    if not usual or not _is_plain(head, base):
        return {}, {}
    found = {}
    for line, content in lines:
        summary = _kept_summary(line, content, metric, base)
        if summary is not None:
            found[summary.name] = (line, content["files"], summary)
    return base, found


def _kept_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with suppress(OSError, ValueError, RecursionError), path.open(encoding="utf-8") as file:
        for line in iter(lambda: file.readline(MOST_LINE_BYTES), ""):
            yield line.rstrip("\n"), json.loads(line)


def _kept_summary(line: str, content: Any, metric: str, base: Mapping[str, Any]) -> Summary | None:
    """Return the summary by ``metric`` in a line; None if the line hasn't the form that this program writes."""
    try:
        facts, absent = content["summary"], content["absent"]
        facts["best"] = None if facts["best"] is None else tuple(facts["best"])
        facts |= {name: tuple(facts[name]) for name in ("problems", "unknown_lineage", "curve")}
        summary = Summary(**facts)
        best, changed = summary.best, summary.config
        iterations, values = summary.curve
        plain = (summary.name, summary.status, summary.metric, summary.started)
        texts = (*plain, *summary.problems, *summary.unknown_lineage)
        whole = (
            content["metric"] == metric
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(part, dict) for part in (changed, summary.scores))
            and all(value is None or isinstance(value, float) for value in (summary.hours, *summary.scores.values()))
            and (best is None or [type(part) for part in best] == [float, int, str])
            and len(iterations) == len(values) <= MOST_POINTS
            and set(map(type, iterations)) <= {int}
            and set(map(type, values)) <= {float}
            and (not summary.judged or is_judgement(summary.judged))
            and _is_plain(line, changed)
        )
        if not whole:
            return None
        config = {**base, **changed}
        for name in absent:
            del config[name]
        return replace(summary, config=config)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _is_plain(line: str, config: Mapping[str, Any]) -> bool:
    """Whether options are plain values within the limits. The full check of thousands takes long: most are flat."""
    flat = "\\u" not in line and all(
        value is None or type(value) in (bool, float, str) or (type(value) is int and abs(value) <= LARGEST_INTEGER)
        for value in config.values()
    )
    try:
        return flat or plain_values(config) is not None
    except ValueError:
        return False


def _signature(folder: Path) -> list[list[int]]:
    """Return inode, size and time of each file behind a summary; zeros for a missing file."""
    found = []
    for name in FILES:
        try:
            facts = os.stat(f"{folder}/{name}")  # noqa: PTH116 (a Path for each would take half of the time)
            found.append([facts.st_ino, facts.st_size, facts.st_mtime_ns])
        except OSError:
            found.append([0, 0, 0])
    return found
