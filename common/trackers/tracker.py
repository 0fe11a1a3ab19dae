"""What a tracker is, and a group of several that a run talks to as if it were one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import UserError

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receives what a run reports. Calls come in this order: start; view, log, log_figure and log_file in any order;
    finish.
    """

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        """Begin a run: ``folder`` is the experiment's own and exists, ``config`` holds its options, flat and plain."""

    def view(self) -> str:
        """Return in one line, after start, how a person sees the run; empty where there is nothing to say."""

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        """Note values by name at a moment of the run: after ``iteration`` micro-batches and ``step`` updates.

        A slash in a name makes groups, so a name can't also be a group: not both ``valid/loss`` and ``valid/loss/any``.
        """

    def log_figure(self, name: str, html: str) -> None:
        """Show a figure under its name: a whole HTML document that loads nothing and holds no picture of a patient."""

    def log_file(self, path: Path) -> None:
        """Keep a copy of the file at ``path``, by its name."""

    def finish(self, status: str) -> None:
        """End the run; ``status`` is one word: finished, failed or interrupted. Also called after a failed start."""


class TrackerGroup:
    """Hands every call on to several trackers. It is a :class:`Tracker` itself.

    A tracker that raises is warned about once and gets no further calls: it never ends a run. A :class:`UserError`
    does end it: metrics.jsonl, the ground truth, raises one where it can't be written. The others are served first.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        self._call("start", lambda tracker: tracker.start(experiment_id, folder, config))

    def view(self) -> str:
        """Return a line for each tracker that has something to say."""
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
            with contextlib.suppress(Exception):  # it may hold a connection or a thread; that it is broken is known
                tracker.finish("failed")
