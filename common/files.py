"""Write files whole or not at all: write to a temporary name first, then rename."""

from __future__ import annotations

import errno
import fcntl
import glob
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
    import numpy as np
    import pandas as pd

FLOAT_FORMAT = "%.17g"
RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
ROWS_AT_ONCE = 2**16  # rows of a CSV that are in memory as text at a time


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` to write to. On success it replaces ``path``, on failure it is removed.

    The file reaches the disk (fsync) before it gets its name. So a killed process or a power failure leaves either the
    old file or the new one. Temporary files of killed writers are removed too. Raises WorkError for a full disk, a
    folder that can't be written, and any other failure of this file. An OSError that names another file passes through.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with suppress(OSError):  # a file system without locks: files of killed writers stay
                fcntl.flock(file, fcntl.LOCK_EX)  # shows that this writer is alive
                _remove_abandoned(path)
            yield temporary
            with temporary.open("rb") as written:  # not `file`: the name may belong to another file now
                os.fsync(written.fileno())
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
        with suppress(OSError):  # report the first error, not this one
            temporary.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of ``path`` whose writers are gone."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def remove_temporaries(folder: Path) -> None:
    """Remove all temporary files of killed writers from ``folder``; call it only while nobody writes there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def check_output(flag: str, path: Path) -> None:
    """Make the folder of the file ``path`` and test it; UsageError, naming ``flag``, if it can't be written."""
    if path.is_dir():
        raise UsageError(f"--{flag}={path}: is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"--{flag}={path}: its folder can't be written ({error.strerror})") from None


def keep_copy(path: Path, copy: Path) -> None:
    """Give the file at ``path``, if it exists, the second name ``copy``, which stays when ``path`` is replaced."""
    if not path.exists():
        return
    with atomic_path(copy) as temporary:
        temporary.unlink()
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
    """Write ``frame`` as CSV, whole or not at all; floats have 17 significant digits, so that they read back equal."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for start in range(0, max(1, len(frame)), ROWS_AT_ONCE):
            rows = frame.iloc[start : start + ROWS_AT_ONCE].copy(deep=False)
            # The same as to_csv(float_format=), four times as fast.
            for place, dtype in enumerate(rows.dtypes):
                if dtype in ("float64", "float32"):
                    rows.isetitem(place, _number_texts(rows.iloc[:, place].to_numpy()))
            rows.to_csv(file, index=index, header=start == 0, float_format=FLOAT_FORMAT, lineterminator="\n")


def inert(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; numbers stay."""
    if not text.startswith(RUN_BY_SPREADSHEETS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def inert_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Apply :func:`inert` to all cells and column names of a table."""

    def mend(value: Any) -> Any:
        return inert(value) if isinstance(value, str) else value

    mended = frame.rename(columns=mend)
    for place, dtype in enumerate(frame.dtypes):
        if dtype.kind in "biuf":
            continue
        texts = {value for value in frame.iloc[:, place].tolist() if isinstance(value, str)}
        if any(inert(text) != text for text in texts):  # most columns repeat a few texts, none of them a formula
            mended.isetitem(place, frame.iloc[:, place].map(mend).astype(dtype))
    return mended


def _number_texts(values: np.ndarray) -> np.ndarray:
    """Return numbers (N,) as texts, "" for NaN; equal numbers are formatted only once."""
    import numpy as np
    import pandas as pd

    bits = values.astype(np.float64).view(np.int64)  # tells minus zero from zero
    codes, different = pd.factorize(bits)
    texts = ["" if number != number else FLOAT_FORMAT % number for number in different.view(np.float64).tolist()]
    return np.array(texts, dtype=object)[codes]
