"""The interface of trackers, and a group of several that acts as one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import UserError

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receives what a run reports.

    Calls come in this order: start, then view, log, log_figure and log_file in any order, then finish.
    """

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin a run. ``folder`` is the experiment's and exists. ``config`` holds its options, flat and plain."""

    def view(self) -> str:
        """Return one line that tells a person how to see the run, or "". Called after start."""

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        """Record values by name, after ``iteration`` micro-batches and ``step`` updates.

        A slash in a name makes a group, and a name can't also be a group: not ``valid/loss`` with ``valid/loss/any``.
        """

    def log_figure(self, name: str, html: str) -> None:
        """Show a figure: a whole HTML document that loads nothing and holds no picture of a patient."""

    def log_file(self, path: Path) -> None:
        """Keep a copy of the file at ``path``, by its name."""

    def finish(self, status: str) -> None:
        """End the run. ``status`` is finished, failed or interrupted. Also called after a failed start."""


class TrackerGroup:
    """Passes every call on to several trackers. It is a :class:`Tracker` itself.

    A tracker that raises gets one warning and no further calls: it never ends a run. A :class:`UserError` does end the
    run, after the other trackers have been called. metrics.jsonl, the ground truth, raises one if it can't be written.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._call("start", lambda tracker: tracker.start(experiment_id, folder, config))

    def view(self) -> str:
        """Return a line for each tracker that has one."""
        said: list[str] = []
        self._call("view", lambda tracker: said.append(tracker.view()))
        return "\n".join(filter(None, said))

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        self._call("log", lambda tracker: tracker.log(metrics, iteration, step))

    def log_figure(self, name: str, html: str) -> None:
        self._call("log_figure", lambda tracker: tracker.log_figure(name, html))

    def log_file(self, path: Path) -> None:
        self._call("log_file", lambda tracker: tracker.log_file(path))

    def finish(self, status: str) -> None:
        self._call("finish", lambda tracker: tracker.finish(status))

    def _call(self, event: str, call: Callable[[Tracker], None]) -> None:
        fatal: UserError | None = None
        for tracker in tuple(self.trackers):
            try:
                call(tracker)
            except UserError as error:
                fatal = error
            except Exception as error:
                self._drop(tracker, event, error)
        if fatal is not None:
            raise fatal

    def _drop(self, tracker: Tracker, event: str, error: Exception) -> None:
        reason = (str(error).strip().splitlines() or [""])[0]
        logger.warning(
            "%s failed in %s and is left out from here on (%s: %s); metrics.jsonl has everything",
            type(tracker).__name__,
            event,
            type(error).__name__,
            reason,
        )
        self.trackers.remove(tracker)
        if event != "finish":
            with contextlib.suppress(Exception):  # it may hold a connection or a thread; more errors say nothing
                tracker.finish("failed")
