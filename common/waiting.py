"""Waits that end: for a process, a thread or a lock that may never answer, and starts that may fail, as one line each.

Whatever the project waits for is waited for by :func:`wait_for`: loading processes, helpers that read files, the
experiments of a sweep, folds, trackers, locks.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any, TypeVar

from common.errors import WorkError

R = TypeVar("R")

LIMIT_S = 600.0  # without progress, after which nobody waits any longer
RUN_LIMIT_S = 3 * LIMIT_S  # for a whole command, whose own waits end before
SAVING_S = 120.0  # without progress, for one that was told to save its state
DYING_S = 1.0  # after a signal that ends a process
LOOK_S = 0.5
LOCK_POLL_S = 0.05
LOOKS = 20  # at the progress, within a limit


class Stalled(WorkError):
    """What was waited for made no progress. The message says who waited for whom, and how long."""


class StartFailed(WorkError):
    """A process couldn't start. The message has its last words."""


def wait_for(
    ready: Callable[[float], bool],
    waits: str,
    *,
    limit_s: float = LIMIT_S,
    progress: Callable[[], object] | None = None,
) -> None:
    """Return as soon as ``ready(seconds)`` says so, which itself waits so long at most.

    Raises Stalled, with ``waits`` ("the training waits for …"), after ``limit_s`` seconds, or where there is a
    ``progress`` after as long a time in which what it returns stayed the same.
    """
    looked = since = time.monotonic()
    seen = progress() if progress is not None else None
    while not ready(min(max(since + limit_s - time.monotonic(), 0.0), limit_s / LOOKS)):
        now = time.monotonic()
        if progress is not None and now - looked >= limit_s / LOOKS:
            looked = now
            if (found := progress()) != seen:
                seen, since = found, now
        if now - since >= limit_s:
            raise Stalled(f"{waits}: no progress for {_duration(limit_s)}")


class Watchdog:
    """Calls that block, and may block for good: what they wait for is ended then, from a thread, so that they fail."""

    def __init__(self, waits: str, end: Callable[[], object], limit_s: float) -> None:
        """``waits`` as of :func:`wait_for`; ``end`` makes a call fail that takes ``limit_s`` seconds."""
        self.waits, self.end, self.limit_s = waits, end, limit_s
        self.since: float | None = None
        self.over = threading.Event()
        self.stalled = False

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._look, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def wait(self, call: Callable[[], R]) -> R:
        """Return ``call()``; Stalled where it took too long, whatever it raised then."""
        self.since = time.monotonic()
        try:
            return call()
        except Exception:
            if self.stalled:
                raise Stalled(f"{self.waits}: no progress for {_duration(self.limit_s)}") from None
            raise
        finally:
            self.since = None

    def _look(self) -> None:
        while not self.over.wait(self.limit_s / LOOKS):
            since = self.since
            if since is not None and time.monotonic() - since >= self.limit_s:
                self.stalled = True
                self.end()
                return


def lock_file(file: int | IO[Any], waits: str, limit_s: float = LIMIT_S) -> None:
    """Lock an open file or folder for this process alone. Stalled where another keeps it; OSError where none can."""

    def ready(seconds: float) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(min(seconds, LOCK_POLL_S))
            return False
        return True

    wait_for(ready, waits, limit_s=limit_s)


def start_process(command: Sequence[str], what: str, **options: Any) -> subprocess.Popen:
    """Start ``command`` as subprocess.Popen does; StartFailed, naming ``what``, where no process is left."""
    try:
        return subprocess.Popen(command, **options)
    except (OSError, subprocess.SubprocessError, MemoryError) as error:
        raise start_failed(what, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def start_failed(what: str, words: str) -> StartFailed:
    """Return the error of a process that couldn't start; ``words``: all that it said, of which the last line counts."""
    last = (words.strip().splitlines() or ["it said nothing"])[-1].strip()
    return StartFailed(
        f"{what} can't be started ({last}); that takes memory and free processes: look at ulimit -v, ulimit -u and the "
        "container's limits, or let fewer run (--n_jobs)"
    )


def activity(pid: int) -> tuple[int, int]:
    """Return what a process and its descendants did so far: whole seconds of processors, MB read and written.

    What waits for ever stays below a second's work even where it looks up now and then. A process that ended: (0, 0).
    """
    import psutil  # here, since helpers import this module

    seconds, transferred = 0.0, 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error, AttributeError):  # it ended meanwhile; no such count on this system
                seconds += sum(one.cpu_times()[:2])
                counts = one.io_counters()
                transferred += counts.read_bytes + counts.write_bytes
    return int(seconds), transferred // 10**6


def run_to_end(
    process: subprocess.Popen, waits: str, limit_s: float = RUN_LIMIT_S, look: Callable[[], object] = lambda: None
) -> str:
    """Wait for the end of a process that leads a session; return what it wrote to stdout, where that is a pipe.

    ``look`` is called now and then meanwhile, and at the end. A process in which nothing moves for ``limit_s`` seconds
    is ended, and Stalled says so.
    """
    said: list[str] = []

    def ready(seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            said.append(process.communicate(timeout=min(seconds, LOOK_S))[0] or "")
        look()
        return bool(said)

    try:
        wait_for(ready, waits, limit_s=limit_s, progress=lambda: activity(process.pid))
    except Stalled as stalled:
        saved = end_process(process, limit_s)
        raise Stalled(f"{stalled}; it {'was told to save its state and ended' if saved else 'was killed'}") from None
    return said[0]


def end_process(process: subprocess.Popen, limit_s: float = RUN_LIMIT_S) -> bool:
    """Have a process that leads a session save its state (SIGTERM) and end; kill it, with what it started, if it hangs.

    Return whether it ended by itself.
    """

    def ended(seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.returncode is not None

    process.send_signal(signal.SIGTERM)
    try:
        wait_for(ended, "", limit_s=min(limit_s, SAVING_S), progress=lambda: activity(process.pid))
        return True
    except Stalled:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        ended(DYING_S)  # not even a signal reaches one that waits in the kernel, as for a lost disk
        return False


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"
