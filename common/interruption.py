"""Signals that ask a run to stop: it is told, and stops where it can be continued from."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def interruptible(request: Callable[[], None]) -> Iterator[None]:
    """Within this context SIGTERM, SIGUSR1 (what schedulers send ahead) and Ctrl-C call ``request``, with a line.

    A second Ctrl-C raises KeyboardInterrupt at once. In a thread, which can't hear signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        more = "; press Ctrl-C again to stop at once and lose what came after last.pt" if interrupts else ""
        name = signal.Signals(number).name
        print(f"{name}: the run saves its state after the current step and stops{more}", file=sys.stderr, flush=True)
        request()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Leave the signals of :func:`interruptible` to the parent: they often go to the whole group of processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
