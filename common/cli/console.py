"""What a command says: how much of it (``--verbosity``), and bars that suit terminals, log files and CI alike."""

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
FILE_ONLY = "file_only"  # marks a log record that the console gets in another way
LINE_S = 60.0  # between two lines of a bar where no terminal shows it
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

_level = NORMAL


def verbosity() -> int:
    """Return how much the command says: QUIET, NORMAL or ALL."""
    return _level


def set_verbosity(level: int, reads: object = None) -> None:
    """Say as much as ``level`` allows until the command ends, whose main function :func:`restored` surrounds.

    ``reads``: what the command reads first, which a terminal shows at once: imports alone may take many seconds.
    QUIET: stdout is kept back but for the path of the result, the last line that is one; stderr has warnings and errors
    only. ALL: stderr also has all that is logged.
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
    """Undo :func:`set_verbosity` at the end; print the result that was kept back with the rest, if all went well."""
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
        paths = [line for line in lines if os.path.exists(line)]  # noqa: PTH110 - Path refuses what can't be one
        print("".join(f"{line}\n" for line in (paths or lines)[-1:]), end="")


def tell(line: str) -> None:
    """Print a line on stderr, above a bar that stands there; nothing where the user wants it quiet."""
    from tqdm import tqdm  # here, so that --help needs none of it

    if _level != QUIET:
        tqdm.write(line, file=sys.stderr)


def say(line: str) -> None:
    """Print a line of the result on stdout, above a bar that stands there."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)


def progress(*iterable: Any, **options: Any) -> tqdm:
    """Return a tqdm bar on stderr; where that is no terminal, a line a minute; where it shall be quiet, neither."""
    from tqdm import tqdm

    if _level == QUIET:
        return tqdm(*iterable, **options, disable=True)
    if _draws():
        return tqdm(*iterable, **options, dynamic_ncols=True)
    lines = {"mininterval": LINE_S, "maxinterval": LINE_S, "delay": LINE_S, "miniters": 1}
    form = options.get("bar_format", FORMAT).replace("{bar}|", "")
    return tqdm(*iterable, **options | lines | {"bar_format": form}, file=_Lines())


def _draws() -> bool:
    """Whether stderr is a terminal; one without a width (of some CI systems) shows no bar."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


class _Lines(io.TextIOBase):
    """Takes what tqdm draws again and again in one place, and prints each as a line."""

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
