"""Error reports of commands: one line on stderr, and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from common.cli import console
from common.errors import EXIT_USAGE, EXIT_WORK, UserError, shortened

P = ParamSpec("P")
R = TypeVar("R")
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports after SIGPIPE
NO_SPACE = "failed to map segment"  # message of the loader of shared libraries without memory


def command(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap an entry point: a :class:`UserError` becomes one line on stderr and its exit code, Ctrl-C becomes 130.

    If the reader of stdout is gone (``| head``), end quietly. Other exceptions keep their traceback: they are our
    faults, not the user's.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with console.restored():
                result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        except UserError as error:
            line = " ".join(str(error).splitlines())  # a file name may hold a line break
            print(f"{error.prefix}{line}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            print(shortened(f"error: {error.filename}: no file can have so long a name"), file=sys.stderr)
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
