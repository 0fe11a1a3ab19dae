"""Signals that ask a run to stop: the run saves its state first, so that it can continue later."""

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
    """Return SIGTERM, SIGUSR1 (a scheduler's warning), Ctrl-C, and SIGHUP (a lost terminal) except under nohup."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in SIGNALS if number != signal.SIGHUP or not nohup)


def leave_lost_terminal() -> None:
    """If the terminal is gone, discard all further output, which would raise errors."""
    for descriptor in (1, 2):  # stdout and stderr, even if Python replaced them
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextmanager
def interruptible(request: Callable[[], None]) -> Iterator[None]:
    """Call ``request`` and print a line for each signal of :func:`heard_signals` within this context.

    A second Ctrl-C raises KeyboardInterrupt at once. In a thread, which gets no signals, nothing changes.
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
    """Ignore these signals in a child process: they often go to the whole group, and the parent handles them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
