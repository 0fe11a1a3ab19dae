"""Check a dataset's folder before the work: no other run uses it, it is writable, and the disk has space."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UsageError, WorkError


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Make ``folder``, check that it is writable, and keep other runs out while the context lasts."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkError(f"{folder}: the disk is full; make space and start again") from None
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); check --data_input_folder") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WorkError(f"{folder}: another run is making this dataset; wait for it to end") from None
        yield
    finally:
        os.close(handle)


def check_space(folder: Path, needed_bytes: int, ways: Mapping[str, int] | None = None) -> None:
    """Raise WorkError if the disk of ``folder`` has less than ``needed_bytes`` left.

    ``ways`` gives the bytes needed with other options. The message names those that would fit.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        fitting = [
            f"{option} needs {count / 1e9:.2f} GB, or " for option, count in (ways or {}).items() if count <= free
        ]
        raise WorkError(
            f"{folder}: the disk has {free / 1e9:.2f} GB free, the images need {needed_bytes / 1e9:.2f} GB; "
            f"{''.join(fitting)}make space or choose another --data_input_folder"
        )


def list_files(folder: Path, suffix: str) -> pd.DataFrame:
    """Return the files in ``folder`` whose name ends in ``suffix``: name (without it, sorted), bytes, mtime_ns."""
    names, sizes, times = [], [], []
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffix) and not entry.is_dir():
                    try:
                        status = entry.stat()
                        size, time = status.st_size, status.st_mtime_ns
                    except OSError:  # a broken link, which is reported when it is read
                        size, time = 0, 0
                    names.append(entry.name.removesuffix(suffix))
                    sizes.append(size)
                    times.append(time)
    table = pd.DataFrame({"name": names, "bytes": np.array(sizes, np.int64), "mtime_ns": np.array(times, np.int64)})
    return table.astype({"name": object}).sort_values("name", ignore_index=True)
