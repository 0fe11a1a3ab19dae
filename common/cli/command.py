"""Error reports of commands: one line on stderr, and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import resource
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from common.cli import console
from common.errors import EXIT_USAGE, EXIT_WORK, UserError, WorkError, shortened

P = ParamSpec("P")
R = TypeVar("R")
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports after SIGPIPE
# Messages of the loader of shared libraries, and of Python, without memory (or, of threads, without a number left).
NO_SPACE = ("failed to map segment", "can't start new thread")
# Bytes of addresses. Measured with one thread: from 400 to 600 MB SciPy's OpenBLAS crashes or spins for ever.
LEAST_ADDRESSES = 700 * 10**6
LIMITS = "give it more memory, or look at ulimit -v, ulimit -u and the container's limit"


def command(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap an entry point: a :class:`UserError` becomes one line on stderr and its exit code, Ctrl-C becomes 130.

    If the reader of stdout is gone (``| head``), end quietly. Other exceptions keep their traceback: they are our
    faults, not the user's.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            _check_addresses()
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
        except (MemoryError, ImportError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_SPACE):
                raise
            words = (str(error).strip().splitlines() or ["no memory is left"])[-1]
            print(f"error: out of host memory ({words}); {LIMITS}", file=sys.stderr)
            raise SystemExit(EXIT_WORK) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(EXIT_INTERRUPTED) from None

    return wrapper


def _check_addresses() -> None:
    """Raise WorkError where the process may have too few addresses (ulimit -v) for the libraries of any command."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESSES:
        raise WorkError(
            f"out of host memory (ulimit -v leaves {limit / 1e6:.0f} MB of addresses, and a command's libraries need "
            f"{LEAST_ADDRESSES / 1e6:.0f} MB at least); {LIMITS}"
        )
