"""A run's log, train.log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.cli.console import ALL, FILE_ONLY, NORMAL, verbosity
from common.errors import UserError
from common.experiments.folder import folder_error

logger = logging.getLogger(__name__)

LOG_FILE = "train.log"


@contextmanager
def setup_logging(folder: Path, console: bool) -> Iterator[None]:
    """Within this context, write all log messages to ``folder/train.log`` with UTC times.

    The console (stderr) gets warnings too, and with ``console`` or --verbosity=2 all messages. Python's own warnings
    reach it only together with all messages. An error that leaves the context is logged. At its end logging is
    restored, so that the next run in this process doesn't write into this file.
    """
    try:
        log_file = LogFile(folder / LOG_FILE, encoding="utf-8")
    except OSError as error:
        raise folder_error(folder, error) from error
    log_file.setFormatter(UtcFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console = console and verbosity() == NORMAL
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.INFO if console else logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(message)s" if console else "%(levelname)s: %(message)s"))
    terminal.addFilter(lambda record: not hasattr(record, FILE_ONLY) and (console or record.name != "py.warnings"))

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(log_file)
    if verbosity() != ALL:  # else the console already gets everything
        root.addHandler(terminal)
    logging.captureWarnings(True)
    try:
        yield
    except UserError as error:
        logger.error("%s", error, extra={FILE_ONLY: True})  # the command prints it
        raise
    except Exception:
        logger.exception("the run failed", extra={FILE_ONLY: True})  # Python prints it
        raise
    except BaseException as error:
        logger.error("interrupted (%s)", type(error).__name__, extra={FILE_ONLY: True})
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(terminal)
        root.removeHandler(log_file)
        root.setLevel(level)
        log_file.close()


class UtcFormatter(logging.Formatter):
    """Times as 2026-11-24T14:05:09.123Z, which compare across machines."""

    converter = time.gmtime
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class LogFile(logging.FileHandler):
    """A log file that survives a full disk: the run goes on, and the console gets a single warning."""

    def __init__(self, path: Path, encoding: str) -> None:
        super().__init__(path, encoding=encoding)
        self.failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.warn_once(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # closing tries again what the full disk refused
            self.warn_once(error)

    def warn_once(self, error: OSError) -> None:
        if not self.failed:
            self.failed = True
            reason = f"cannot be written ({error.strerror}), so it has gaps"
            print(f"warning: {self.baseFilename}: {reason}", file=sys.stderr)
