"""Files that are either whole or absent: everything is written under a temporary name and then put in place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError, WorkError

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write to; on success it replaces ``path``, on failure it is removed.

    The file reaches the disk (fsync) before it gets its name, so that a killed process or a lost power supply
    leaves either the old file or the new one. A full disk, a folder that can't be written and any other failure of
    this file is a :class:`WorkError`; an OSError that names another file is left as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) not in (str(temporary), str(path)):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkError(f"{path}: the disk is full; make space and start again") from error
        raise WorkError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder's owner and mode"
        ) from error
    finally:
        with suppress(OSError):  # a folder that is none, or became read-only: the first error is the one to report
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove from ``folder`` what writers that were killed left; only where no other process writes there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def check_output(flag: str, path: Path) -> None:
    """Make the folder of the file ``path`` and try it; UsageError naming ``flag`` where the file can't be written."""
    if path.is_dir():
        raise UsageError(f"--{flag}={path}: is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"--{flag}={path}: its folder can't be written ({error.strerror})") from None


def keep_copy(path: Path, copy: Path) -> None:
    """Give the file at ``path``, where there is one, a second name that stays when ``path`` is replaced."""
    if not path.exists():
        return
    with atomic_path(copy) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, frame: pd.DataFrame, *, index: bool = False) -> None:
    """Write ``frame`` as CSV, whole or not at all; floats keep 17 significant digits and so read back the same."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=index, float_format="%.17g", lineterminator="\n")
