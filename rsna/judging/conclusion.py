"""Conclude an experiment: write its report and its status, then update the leaderboard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.checkpoint import BEST
from common.experiments.logfile import LOG_FILE
from common.reports.leaderboard import HTML_FILE, update_leaderboard
from common.reports.record import REPORT_FILE, results_folder, write_status
from common.trackers.jsonl import FILE_NAME
from common.trackers.tracker import Tracker
from common.training import distributed
from rsna.judging.reports import note_lineage, write_report
from rsna_dataset import METRIC

logger = logging.getLogger(__name__)


def conclude(folder: Path, status: str | None, *, report: bool = True, tracker: Tracker | None = None) -> None:
    """Write an experiment's report, then its status, then the leaderboard, and print where everything lies.

    The status comes after the report: a run that is killed in between is not marked as finished, and the next start
    concludes it. A failure here is only a warning and doesn't change how the run ended. ``status`` None: the experiment
    goes on elsewhere.
    """
    with no_reason_to_fail(folder):
        write_report(folder, status, tracker) if report else note_lineage(folder)
    with no_reason_to_fail(folder):
        if status is not None:
            write_status(folder, status)
        if report:
            update_leaderboard(results_folder(folder), METRIC, {} if status is None else {folder: status})
    distributed.tell(whereabouts(folder))


def whereabouts(folder: Path) -> list[str]:
    """Return a line with the path of each file of a run that people look for, if it exists."""
    places = {
        "report": folder / REPORT_FILE,
        "weights": folder / BEST,
        "all values": folder / FILE_NAME,
        "log": folder / LOG_FILE,
        "leaderboard": results_folder(folder) / HTML_FILE,
    }
    return [f"{name:<12} {path}" for name, path in places.items() if path.is_file()]


@contextmanager
def no_reason_to_fail(folder: Path) -> Iterator[None]:
    """Turn an error into a warning. A missing report must not lose a run, nor hide why a run failed."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s: no report (%s); python report.py writes it later", folder, reason)
