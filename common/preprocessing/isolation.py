"""Calls in a process of their own, so that a decoder that crashes, hangs or eats memory costs only the call.

Neither ProcessPoolExecutor nor joblib's loky fits: both give up all that is under way when one process dies and can't
say which call it died of, neither ends a call that hangs, and no pool of Python's starts within a dask worker, whose
process is daemonic. This runs anywhere, in threads and in workers of any kind: the caller waits, its process works.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from common.waiting import Stalled, activity, start_failed, start_process, wait_for

P = ParamSpec("P")
R = TypeVar("R")

PROJECT = Path(__file__).resolve().parent.parent.parent
MEMORY_BYTES = 2**30  # that a call may add to the process's address space
START_SECONDS = 120.0  # in which a process that starts does nothing at all
DYING_SECONDS = 1.0
WHAT = "a process that reads files"
START = "import sys; sys.path[:0] = [{path!r}]; from common.preprocessing.isolation import serve; serve({handle})"


class CallFailed(Exception):
    """The process of a call died, or was ended because it took too long; ``reason``: crashed, timeout or memory."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Process:
    """A Python process that makes one call after the other. Not for two threads at once.

    It ends when this process ends. Ctrl-C doesn't reach it, and what it prints once it has started goes nowhere:
    decoders print what they find in a header.
    """

    def __init__(self, modules: Sequence[str] = (), *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Start it and import ``modules``; ``memory_bytes`` more than it has then is all that it gets.

        StartFailed, with its last words, where that can't be.
        """
        ours, theirs = socket.socketpair()
        with theirs, ours:
            self.process = start_process(
                [sys.executable, "-c", START.format(path=str(PROJECT), handle=theirs.fileno())],
                WHAT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
            )
            self.connection = Connection(ours.detach())
        self.fresh = True
        with self.process.stderr as words:
            try:
                self._exchange((modules, memory_bytes), START_SECONDS, lambda: activity(self.process.pid))
            except CallFailed as failed:
                os.set_blocking(words.fileno(), False)
                raise start_failed(WHAT, (words.read() or b"").decode(errors="replace") or str(failed)) from None

    def call(self, function: Callable[P, R], timeout: float, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return ``function(*args, **kwargs)``, called there, or raise what it raises.

        ``function`` must be importable there. CallFailed where the process dies or takes longer than ``timeout``
        seconds; it is gone then.
        """
        error, result = self._exchange((function, args, kwargs), timeout)
        self.fresh = False
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the process at once."""
        self._end(0)

    def _exchange(self, message: Any, timeout: float, progress: Callable[[], object] | None = None) -> Any:
        try:
            self.connection.send(message)
            wait_for(self.connection.poll, f"this process waits for {WHAT}", limit_s=timeout, progress=progress)
            return self.connection.recv()
        except Stalled as stalled:
            self.close()
            raise CallFailed("timeout", f"reading it took longer than {timeout:g} seconds") from stalled
        except (EOFError, OSError):
            code = self._end(DYING_SECONDS)
            # Nothing but the kernel kills so where memory runs out.
            if code == -signal.SIGKILL:
                raise CallFailed("memory", "the process that read it was killed, as where memory runs out") from None
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise CallFailed("crashed", f"the process that read it died ({what})") from None

    def _end(self, seconds: float) -> int:
        """Give it so many seconds to end by itself, then kill it; return its exit code."""
        self.connection.close()
        for patience in (seconds, DYING_SECONDS):
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=patience)
            self.process.kill()
        return 1  # not even a signal reaches one that waits in the kernel, as for a lost disk


class Processes:
    """Processes to borrow, made when needed and kept for the next call; ``modules``: what each imports first."""

    def __init__(self, *modules: str) -> None:
        self.modules = modules
        self.idle: list[Process] = []
        self.lent: set[Process] = set()
        self.stopped = self.registered = False
        self.lock = threading.Lock()

    @contextmanager
    def borrow(self, *, fresh: bool = False) -> Iterator[Process]:
        """Lend a process that nobody else has; ``fresh``: a new one, that has made no call yet."""
        with self.lock:
            process = self.idle.pop() if self.idle and not fresh else None
        process = process or Process(self.modules)
        with self.lock:
            if not self.registered:
                atexit.register(self.close)
                self.registered = True
            self.lent.add(process)
        try:
            yield process
        finally:
            with self.lock:
                self.lent.discard(process)
                if self.stopped:
                    process.close()
                elif not process.connection.closed:
                    self.idle.append(process)

    def close(self, keep: int = 0) -> None:
        """End all idle processes but ``keep``."""
        with self.lock:
            ended, self.idle = self.idle[keep:], self.idle[:keep]
        for process in ended:
            process.close()

    def stop(self) -> None:
        """End all processes at once; the calls under way fail. Without effect on later calls."""
        with self.lock:
            self.stopped = True
            for process in self.lent:
                process.process.kill()
        self.close()


class _Server:
    caller: int | None = None  # the process that this one works for; None where this one works for itself


def stop_if_unwanted() -> None:
    """End this process where the one it works for has ended: nobody waits for the result of the call under way."""
    if _Server.caller is not None and os.getppid() != _Server.caller:
        os._exit(1)


def serve(handle: int) -> None:
    """Answer calls until the other side closes the connection; what the process of :class:`Process` runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Server.caller = os.getppid()
    with Connection(handle) as connection:
        try:
            _prepare(*connection.recv())
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
            connection.send(None)
            while True:
                function, args, kwargs = connection.recv()
                connection.send(_answer(function, args, kwargs))
        except (EOFError, OSError):
            return


def _prepare(modules: Sequence[str], memory_bytes: int) -> None:
    """Limit the address space to what it is after the imports and ``memory_bytes``, or to less where the user did."""
    import resource

    for module in modules:
        importlib.import_module(module)
    start = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]  # what ulimit -v allows
    limit = start + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most),) * 2)
    with suppress(OSError):  # where memory runs out the kernel ends this process and not the one that waits
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _answer(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[BaseException | None, Any]:
    try:
        result = function(*args, **kwargs)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return error, None
    return None, result
