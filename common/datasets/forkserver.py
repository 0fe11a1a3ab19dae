"""The fork server of loading processes imports this first, so that a lack of resources gives a line, no traceback."""

from __future__ import annotations

import sys
from types import TracebackType


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line if no process, thread or memory is left. Any other error is a bug and keeps its traceback."""
    if not isinstance(error, OSError | MemoryError):
        sys.__excepthook__(kind, error, trace)
        return
    reason = getattr(error, "strerror", None) or str(error) or "no memory is left"
    print(f"the process that starts loading processes: {reason}", file=sys.stderr)


sys.excepthook = show  # importing a module is the only hook into a fork server
