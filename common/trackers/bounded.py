"""Shared by trackers: work with a time limit, and option values that may leave the machine."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from common.privacy import anonymous
from common.waiting import Stalled, wait_for

R = TypeVar("R")


def within(seconds: float, work: Callable[[], R], discard: Callable[[R], object] | None = None) -> R:
    """Return ``work()`` if it takes at most ``seconds``. Otherwise raise TimeoutError and let it end on its own.

    ``discard`` gets a result that comes too late. An error of ``work`` is raised here.
    """
    results: queue.SimpleQueue[tuple[R | None, Exception | None]] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            results.put((work(), None))
        except Exception as error:
            results.put((None, error))

    def wait_and_discard() -> None:
        result, error = results.get()
        if error is None and discard is not None:
            discard(result)

    threading.Thread(target=attempt, daemon=True, name="tracker-bounded").start()
    found: list[tuple[R | None, Exception | None]] = []

    def ready(seconds: float) -> bool:
        with suppress(queue.Empty):
            found.append(results.get(timeout=seconds))
        return bool(found)

    try:
        wait_for(ready, "the run waits for a tracker", limit_s=max(seconds, 0.0))
    except Stalled:
        threading.Thread(target=wait_and_discard, daemon=True, name="tracker-discard").start()
        raise TimeoutError(f"no answer within {seconds:.1f} s") from None
    ((result, error),) = found
    if error is not None:
        raise error
    return result


def shareable(value: object) -> bool | int | float | str:
    """Return an option's value for a tracker: a finite number, or text without the user's folders and name."""
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return value
    return anonymous(str(value))
