"""Errors that a user can mend, and how a command reports them: one line on stderr, exit code 2 or 1."""

from __future__ import annotations

import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXIT_WORK = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # as a shell says it of one that SIGPIPE ended
NO_SPACE = "failed to map segment"  # what the loader of shared libraries says where no memory is left
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: start again


class UserError(Exception):
    """A mistake or a fault that the user can mend. The message is one line that names the file, field or flag."""

    exit_code = EXIT_WORK
    prefix = "error: "

    def __init__(self, message: str) -> None:
        # A DataLoader worker hands an error over as text with its traceback; the last line is ours.
        if message.startswith("Caught ") and "Original Traceback" in message:
            message = message.rstrip().rsplit("\n", 1)[-1].partition(": ")[2]
        super().__init__(message)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the line alone (IPython asks for this name)."""
        return [f"{self.prefix}{' '.join(str(self).splitlines())}"]


class UsageError(UserError):
    """A flag, configuration or experiment that cannot work; found before any work is done. Exit code 2."""

    exit_code = EXIT_USAGE


class WorkError(UserError):
    """Data, a file or the machine failed the work that was asked for. Exit code 1."""


class Interrupted(UserError):
    """A signal asked the run to stop, and it can go on from where it stopped. Exit code 75."""

    exit_code = EXIT_RESUMABLE
    prefix = ""


def needed(variable: str, folder: Path, pattern: str) -> Path:
    """Return ``folder`` where it holds a file of ``pattern``; UsageError, saying what makes it, for a notebook.

    ``variable``: of the environment, which names another folder.
    """
    if not any(folder.glob(pattern)):
        raise UsageError(
            f"{folder}: has no {pattern} yet; run first: bash train.sh (or name another by {variable}=...)"
        )
    return folder


def nearest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return the end of a sentence that names the known words nearest to ``name``, or an empty text."""
    matches = difflib.get_close_matches(name, [str(word) for word in known], n=count, cutoff=0.6)
    if not matches:
        return ""
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?"


def list_some(names: Iterable[str], most: int = 5) -> str:
    """Return the first ``most`` of ``names`` as text, for a message about many: ``a, b, ...``."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest_file(path: Path) -> str:
    """Return the end of a sentence that names what lies beside ``path`` with nearly its name, or an empty text."""
    try:
        return nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
    except OSError:
        return ""


def command(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap an entry point: a :class:`UserError` becomes one line on stderr and its exit code, Ctrl-C becomes 130.

    Where the reader of stdout is gone (``| head``) the rest is left unsaid. Everything else keeps its traceback, since
    it is a fault of ours and not of the user's.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        from common.cli import console  # here, so that a configuration can be imported without it

        try:
            with console.restored():
                result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        except UserError as error:
            line = " ".join(str(error).splitlines())  # a file's name may hold a line break
            print(f"{error.prefix}{line}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            print(f"error: {error.filename}: no file can have so long a name", file=sys.stderr)
            raise SystemExit(EXIT_USAGE) from None
        except (MemoryError, ImportError) as error:
            if isinstance(error, ImportError) and NO_SPACE not in str(error):
                raise
            words = (str(error).strip().splitlines() or ["no memory is left"])[-1]
            limits = "give it more memory, or look at ulimit -v and the container's limit"
            print(f"error: out of host memory ({words}); {limits}", file=sys.stderr)
            raise SystemExit(EXIT_WORK) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(EXIT_INTERRUPTED) from None

    return wrapper
