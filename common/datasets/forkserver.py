"""Imported first by the fork server of loading processes: what the machine denies it is a line and no traceback."""

from __future__ import annotations

import sys
from types import TracebackType


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line that no process, thread or memory is left. Anything else keeps its traceback: it is our fault."""
    if not isinstance(error, OSError | MemoryError):
        sys.__excepthook__(kind, error, trace)
        return
    reason = getattr(error, "strerror", None) or str(error) or "no memory is left"
    print(f"the process that starts loading processes: {reason}", file=sys.stderr)


sys.excepthook = show  # Python has no other hook in a fork server than the import of a module
