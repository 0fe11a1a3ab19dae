"""Signals that ask a run to stop: it is told, and stops where it can be continued from."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def heard_signals() -> tuple[signal.Signals, ...]:
    """Return SIGTERM, SIGUSR1 (what schedulers send ahead), Ctrl-C, and SIGHUP (a lost terminal) but under nohup."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in SIGNALS if number != signal.SIGHUP or not nohup)


def leave_lost_terminal() -> None:
    """Send what is written from here on nowhere where the terminal is gone: each word would be an error."""
    for descriptor in (1, 2):  # stdout and stderr, whatever Python has in their place
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextmanager
def interruptible(request: Callable[[], None]) -> Iterator[None]:
    """Within this context the signals of :func:`heard_signals` call ``request``, with a line.

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
        leave_lost_terminal()
        more = "; press Ctrl-C again to stop at once and lose what came after last.pt" if interrupts else ""
        name = signal.Signals(number).name
        print(f"{name}: the run saves its state after the current step and stops{more}", file=sys.stderr, flush=True)
        request()

    before = {number: signal.signal(number, handle) for number in heard_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Leave the signals of :func:`interruptible` to the parent: they often go to the whole group of processes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
