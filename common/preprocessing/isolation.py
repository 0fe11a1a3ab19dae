"""Make calls in another process, so that a decoder that crashes, hangs or fills the memory costs only that call.

ProcessPoolExecutor and joblib's loky don't fit:

- If one process dies, they give up all calls in progress and can't say which call killed it.
- They don't end a call that hangs.
- They don't start within a dask worker, whose process is daemonic.

This works in threads and in workers of any kind: the caller waits while its process works.
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
MEMORY_BYTES = 2**30  # that calls may add to the process's address space
START_SECONDS = 120.0  # without any activity, after which starting a process has failed
DYING_SECONDS = 1.0
WHAT = "a process that reads files"
START = "import sys; sys.path[:0] = [{path!r}]; from common.preprocessing.isolation import serve; serve({handle})"


class CallFailed(Exception):
    """The process of a call died or was killed for taking too long. ``reason`` is crashed, timeout or memory."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Process:
    """A Python process that makes one call after the other. Only one thread may use it at a time.

    It ends when this process ends. Ctrl-C doesn't reach it. Its output is discarded once it has started, because
    decoders print what they find in a header.
    """

    def __init__(self, modules: Sequence[str] = (), *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Start the process and import ``modules``. After that it may use ``memory_bytes`` more.

        Raises StartFailed with the process's last output if it can't start.
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

        ``function`` must be importable there. Raises CallFailed if the process dies or takes longer than ``timeout``
        seconds. Either way it has ended then.
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
            # The kernel sends SIGKILL when memory runs out.
            if code == -signal.SIGKILL:
                raise CallFailed("memory", "the process that read it was killed, as where memory runs out") from None
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise CallFailed("crashed", f"the process that read it died ({what})") from None

    def _end(self, seconds: float) -> int:
        """Wait ``seconds`` for the process to end by itself, then kill it. Return its exit code."""
        self.connection.close()
        for patience in (seconds, DYING_SECONDS):
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=patience)
            self.process.kill()
        return 1  # a process that waits in the kernel, for example for a lost disk, can't be killed


class Processes:
    """Processes to borrow, started when needed and kept for the next call. Each imports ``modules`` first."""

    def __init__(self, *modules: str) -> None:
        self.modules = modules
        self.idle: list[Process] = []
        self.lent: set[Process] = set()
        self.stopped = self.registered = False
        self.lock = threading.Lock()

    @contextmanager
    def borrow(self, *, fresh: bool = False) -> Iterator[Process]:
        """Lend a process that nobody else uses; with ``fresh``, a new one that has made no call yet."""
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
        """End all idle processes except ``keep`` of them."""
        with self.lock:
            ended, self.idle = self.idle[keep:], self.idle[:keep]
        for process in ended:
            process.close()

    def stop(self) -> None:
        """End all processes at once. Calls in progress fail; later calls are not affected."""
        with self.lock:
            self.stopped = True
            for process in self.lent:
                process.process.kill()
        self.close()


class _Server:
    caller: int | None = None  # id of the process that this one works for; None if it works for itself


def stop_if_unwanted() -> None:
    """End this process if the one that it works for has ended: nobody waits for the result."""
    if _Server.caller is not None and os.getppid() != _Server.caller:
        os._exit(1)


def serve(handle: int) -> None:
    """Answer calls until the other side closes the connection. The process of :class:`Process` runs this."""
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
    """Limit the address space to its size after the imports plus ``memory_bytes``, or to the user's lower limit."""
    import resource

    for module in modules:
        importlib.import_module(module)
    start = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]  # what ulimit -v allows
    limit = start + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most),) * 2)
    with suppress(OSError):  # if memory runs out, the kernel kills this process and not its caller
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
