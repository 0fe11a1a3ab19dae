"""The end of an experiment: its report, its status, the leaderboard of all."""

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
    """End an experiment: write its report, then its status, then the leaderboard, and tell where all is.

    The status comes after the report. So a run that is killed in between is not marked as finished, and the next start
    concludes it. A failure here is a warning and doesn't change how the run ended. ``status`` is None for an experiment
    that goes on elsewhere.
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
    """Return a line for each thing of a run that a person may look for, of those that are there."""
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
    """Make a warning of what prevents a report: it is no reason to lose a run, nor may it hide why one failed."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s: no report (%s); python report.py writes it later", folder, reason)
