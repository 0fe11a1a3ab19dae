"""Console output: how much a command prints (``--verbosity``), and progress bars for terminals, log files and CI."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

QUIET, NORMAL, ALL = 0, 1, 2
FILE_ONLY = "file_only"  # marks a log record that reaches the console in another way
LINE_S = 60.0  # between two lines of a bar without a terminal
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

_level = NORMAL


def verbosity() -> int:
    """Return how much the command prints: QUIET, NORMAL or ALL."""
    return _level


def set_verbosity(level: int, reads: object = None) -> None:
    """Print as much as ``level`` allows until the command ends; :func:`restored` must surround its main function.

    - QUIET: stdout gets only the path of the result (its last line that is a path), stderr only warnings and errors.
    - ALL: stderr also gets everything that is logged.

    ``reads`` is what the command reads first. A terminal shows it at once, since imports may take many seconds.
    """
    global _level
    _level = level
    if level == QUIET:
        sys.stdout = io.StringIO()
    elif level == ALL:
        logging.getLogger().addHandler(_log_on_console())
        logging.getLogger().setLevel(logging.INFO)
    if reads is not None and level != QUIET and _draws():
        print(f"reading {reads} ...", file=sys.stderr, flush=True)


@contextmanager
def restored() -> Iterator[None]:
    """Undo :func:`set_verbosity` at the end; after success print the result that QUIET kept back."""
    global _level
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    before = _level, sys.stdout
    try:
        yield
        kept = sys.stdout
    finally:
        _level, sys.stdout = before
        root.setLevel(level)
        for handler in set(root.handlers).difference(handlers):
            root.removeHandler(handler)
    if kept is not sys.stdout:
        lines = [line for line in kept.getvalue().splitlines() if line]
        paths = [line for line in lines if os.path.exists(line)]  # noqa: PTH110 - Path raises for some texts
        print("".join(f"{line}\n" for line in (paths or lines)[-1:]), end="")


def tell(line: str) -> None:
    """Print a line on stderr, above any progress bar; print nothing if QUIET."""
    from tqdm import tqdm  # here: --help doesn't need it

    if _level != QUIET:
        tqdm.write(line, file=sys.stderr)


def say(line: str) -> None:
    """Print a line of the result on stdout, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)


def progress(*iterable: Any, **options: Any) -> tqdm:
    """Return a tqdm bar on stderr; without a terminal it prints a line each minute, if QUIET nothing."""
    from tqdm import tqdm

    if _level == QUIET:
        return tqdm(*iterable, **options, disable=True)
    if _draws():
        return tqdm(*iterable, **options, dynamic_ncols=True)
    lines = {"mininterval": LINE_S, "maxinterval": LINE_S, "delay": LINE_S, "miniters": 1}
    form = options.get("bar_format", FORMAT).replace("{bar}|", "")
    return tqdm(*iterable, **options | lines | {"bar_format": form}, file=_Lines())


def _draws() -> bool:
    """Whether stderr is a terminal that can show a bar; those of some CI systems have no width."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


class _Lines(io.TextIOBase):
    """A file for tqdm that prints every state of the bar as a line of its own."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            print(line, file=sys.stderr, flush=True)
        return len(text)


def _log_on_console() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: not hasattr(record, FILE_ONLY))
    return handler
