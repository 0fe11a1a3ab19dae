"""Errors that a user can fix: each is one line and has an exit code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

EXIT_WORK = 1
EXIT_USAGE = 2
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again later
LONGEST_LINE = 4000
LONG_WORD = re.compile(r"\S{501,}")


def shortened(message: str) -> str:
    """Cut the middle out of long values in a message, and add their length.

    For example, a file may hold a number of 100,000 digits where a learning rate is expected.
    """
    message = LONG_WORD.sub(lambda word: f"{word[0][:100]}...{word[0][-50:]} ({len(word[0]):,} characters)", message)
    if len(message) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        message = f"{message[:half]} ... ({len(message) - 2 * half:,} characters more) ... {message[-half:]}"
    return message


class UserError(Exception):
    """A mistake or a fault that the user can fix. The message is one line that names the file, field or flag."""

    exit_code = EXIT_WORK
    prefix = "error: "

    def __init__(self, message: str) -> None:
        # A DataLoader worker passes an error on as text with its traceback; the last line is our message.
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rstrip().rsplit("\n", 1)[-1].partition(": ")[2]
        super().__init__(shortened(message))

    def _render_traceback_(self) -> list[str]:
        """Show only the message in a notebook (IPython calls this method)."""
        return [f"{self.prefix}{' '.join(str(self).splitlines())}"]


class UsageError(UserError):
    """A flag, configuration or experiment that can't work, found before the work starts. Exit code 2."""

    exit_code = EXIT_USAGE


class WorkError(UserError):
    """The work failed because of the data, a file or the machine. Exit code 1."""


class Interrupted(UserError):
    """A signal stopped the run, which can continue from there. Exit code 75."""

    exit_code = EXIT_RESUMABLE
    prefix = ""


def needed(variable: str, folder: Path, pattern: str) -> Path:
    """Return ``folder`` if it holds a file of ``pattern``, for a notebook; UsageError with the command that makes one.

    ``variable`` is the environment variable that names another folder.
    """
    if not any(folder.glob(pattern)):
        raise UsageError(
            f"{folder}: has no {pattern} yet; run first: bash train.sh (or name another by {variable}=...)"
        )
    return folder


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return ``; did you mean '...'?`` with the known words nearest to ``name``, or an empty text."""
    matches = difflib.get_close_matches(name, [str(word) for word in known], n=count, cutoff=0.6)
    if not matches:
        return ""
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?"


def list_some(names: Iterable[str], most: int = 5) -> str:
    """Return the first ``most`` of ``names`` as text for a message: ``a, b, ...``."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest_file(path: Path) -> str:
    """Return ``; did you mean '...'?`` with a file beside ``path`` that has nearly its name, or an empty text."""
    try:
        return nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    except OSError:
        return ""
