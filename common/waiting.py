"""Wait for processes, threads and locks without hanging for ever, and start processes with clear errors.

All waits of the project use :func:`wait_for`: for loading processes, helpers that read files, experiments of a sweep,
folds, trackers and locks.
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

LIMIT_S = 600.0  # without progress until a wait gives up
RUN_LIMIT_S = 3 * LIMIT_S  # for a whole command: its own waits must end first
SAVING_S = 120.0  # without progress, for a process that was told to save its state
DYING_S = 1.0  # for a process to end after SIGKILL
LOOK_S = 0.5
LOCK_POLL_S = 0.05
LOOKS = 20  # how often to look at the progress within a limit


class Stalled(WorkError):
    """A wait gave up, since there was no progress. The message says who waited for what, and how long."""


class StartFailed(WorkError):
    """A process couldn't start. The message has the last line that it printed."""


def wait_for(
    ready: Callable[[float], bool],
    waits: str,
    *,
    limit_s: float = LIMIT_S,
    progress: Callable[[], object] | None = None,
) -> None:
    """Call ``ready(seconds)``, which waits at most so long, until it returns True.

    Raises Stalled after ``limit_s`` seconds. With ``progress``, the time starts again whenever the value that
    ``progress()`` returns changes. ``waits`` begins the message: "the training waits for …".
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
    """Guards calls that may block for ever: a thread ends what they wait for, so that they fail."""

    def __init__(self, waits: str, end: Callable[[], object], limit_s: float) -> None:
        """``waits`` as in :func:`wait_for`; ``end()`` makes a call fail that takes longer than ``limit_s`` seconds."""
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
        """Return ``call()``; Stalled if it fails because it took too long."""
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
    """Lock an open file or folder for this process; Stalled if another keeps it, OSError if locks don't work there."""

    def ready(seconds: float) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(min(seconds, LOCK_POLL_S))
            return False
        return True

    wait_for(ready, waits, limit_s=limit_s)


def start_process(command: Sequence[str], what: str, **options: Any) -> subprocess.Popen:
    """Start ``command`` as subprocess.Popen does; StartFailed, naming ``what``, if no process can be started."""
    try:
        return subprocess.Popen(command, **options)
    except (OSError, subprocess.SubprocessError, MemoryError) as error:
        raise start_failed(what, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def start_failed(what: str, words: str) -> StartFailed:
    """Return the error for a process that couldn't start; it quotes the last line of its output ``words``."""
    last = (words.strip().splitlines() or ["it said nothing"])[-1].strip()
    return StartFailed(
        f"{what} can't be started ({last}); that takes memory and free processes: look at ulimit -v, ulimit -u and the "
        "container's limits, or let fewer run (--n_jobs)"
    )


def activity(pid: int) -> tuple[int, int]:
    """Return the work of a process and its descendants so far: whole seconds of processor time, MB read and written.

    A process that waits for ever stays below one second, even if it polls. A process that ended gives (0, 0).
    """
    import psutil  # here: small helper processes import this module

    seconds, transferred = 0.0, 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error, AttributeError):  # it ended meanwhile, or the system has no such count
                seconds += sum(one.cpu_times()[:2])
                counts = one.io_counters()
                transferred += counts.read_bytes + counts.write_bytes
    return int(seconds), transferred // 10**6


def run_to_end(
    process: subprocess.Popen, waits: str, limit_s: float = RUN_LIMIT_S, look: Callable[[], object] = lambda: None
) -> str:
    """Wait until a process that leads a session ends; return what it wrote to stdout if that is a pipe.

    Call ``look`` about twice a second, and at the end. If the process does no work for ``limit_s`` seconds, end it and
    raise Stalled.
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
    """Ask a process that leads a session to save its state and end (SIGTERM); if it hangs, kill its whole session.

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
        ended(DYING_S)  # a process that waits in the kernel, as for a lost disk, gets no signal
        return False


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"
