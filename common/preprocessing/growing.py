"""Append rows to CSVs while files are converted. Rows are flushed at once; a line that a kill has cut is dropped."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from common.errors import WorkError

TAIL_BYTES = 2**16  # longer than any line


@contextmanager
def adding_to(path: Path) -> Iterator[None]:
    """Turn an error of adding rows to ``path`` into a WorkError that says how to continue."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fault = "the disk is full; make space and" if full else f"cannot be written ({error.strerror});"
        raise WorkError(f"{path}: {fault} start again to go on") from None


def add_rows(file: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows to an open table and flush them."""
    csv.writer(file, lineterminator="\n").writerows(rows)
    file.flush()


def end_of_lines(file: BinaryIO) -> int:
    """Return the offset at which the last whole line of a file ends. A kill can cut the line after it."""
    start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1
