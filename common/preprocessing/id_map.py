"""The map of ids: the file and patient behind each id, in a table beside the key, never inside a dataset."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd

from common.cli.console import tell
from common.errors import WorkError
from common.files import atomic_path, inert
from common.preprocessing.growing import add_rows, adding_to, end_of_lines
from common.preprocessing.pseudonyms import FILE, IMAGE, is_made
from common.preprocessing.records import Record
from common.preprocessing.sources import printable

OWNER_ONLY = 0o600
COLUMNS = ("id", "file", "frame", "patient_id", "study_id", "series_id", "SeriesInstanceUID", "instance_id")
HEADER = ",".join(COLUMNS).encode() + b"\n"
OLDER = b"id,file,frame,patient_id,study_id,series_id,instance_id\n"  # without the series' pseudonym; is made anew
SHOWN_KINDS = (IMAGE, "patient", "study", "series")  # kinds of ids that a dataset's tables contain

Row = Sequence[str | int]


class IdMap:
    """A CSV that grows while files are converted and is sorted at the end. A new run continues the map of a killed one.

    Only ids that were made here have a row. The competition's own ids say where they come from.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: io.TextIOWrapper | None = None

    def read(self) -> pd.DataFrame:
        """Return the last row of each id so far, as text, index ``id``; no rows if there is no map.

        A line that a kill has cut is left out. Raises WorkError for a file that is no map of ids.
        """
        try:
            content = self.path.read_bytes()
            lines = content[: end_of_lines(io.BytesIO(content))]
            if lines.startswith(OLDER):
                lines = b""
            table = pd.read_csv(io.BytesIO(lines or HEADER), dtype=str,
                                keep_default_na=False, index_col=False)[list(COLUMNS)]  # fmt: skip
        except FileNotFoundError:
            table = pd.DataFrame(columns=list(COLUMNS), dtype=object)
        except OSError as error:
            raise WorkError(f"{self.path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError):
            raise WorkError(f"{self.path}: no map of ids; move it away and start again") from None
        return table.drop_duplicates("id", keep="last").set_index("id")

    def __enter__(self) -> IdMap:
        """Open for adding."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self.file = self.file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def add(self, records: Iterable[Record], path_of: Callable[[str], str]) -> None:
        """Add the rows of ``records`` and flush them. ``path_of`` returns the path of a source id."""
        rows = map_rows(records, path_of)
        if not rows:
            return
        with adding_to(self.path):
            if self.file is None:
                self.file = self._open()
            add_rows(self.file, rows)

    def finish(self, rows: pd.DataFrame) -> None:
        """Rewrite the map with ``rows`` (columns :data:`COLUMNS`), sorted by file. Without rows, remove the map."""
        if rows.empty:
            self.path.unlink(missing_ok=True)
            return
        order = rows.assign(number=pd.to_numeric(rows["frame"])).sort_values(["file", "number", "id"])
        with atomic_path(self.path) as temporary:
            temporary.chmod(OWNER_ONLY)
            order[list(COLUMNS)].to_csv(temporary, index=False, lineterminator="\n")
        tell(f"{self.path}: which file and patient each id stands for; for you alone, as the key beside it")

    def _open(self) -> io.TextIOWrapper:
        """Open the file for adding, readable by its owner alone. Drop a line that a kill has cut."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
        with os.fdopen(handle, "rb+") as file:
            os.fchmod(handle, OWNER_ONLY)
            file.seek(0)
            whole = 0 if file.read(len(OLDER)) == OLDER else end_of_lines(file)
            file.truncate(whole)
        opened = self.path.open("a", encoding="utf-8", newline="")
        if not whole:
            add_rows(opened, [COLUMNS])
        return opened


def map_rows(records: Iterable[Record], path_of: Callable[[str], str]) -> list[Row]:
    """Return the rows (:data:`COLUMNS`) of those records that need one."""
    rows: list[Row] = []
    for record in records:
        if record.identity is None or not any(is_made(kind, getattr(record, f"{kind}_id")) for kind in SHOWN_KINDS):
            continue
        own = record.identity
        names = (own.patient_id, own.study_id, record.series_id, own.series_id, own.instance_id)
        texts = (printable(path_of(record.source_id)), record.frame, *names)
        rows.append((record.image_id, *(inert(str(text)) for text in texts)))
    return rows


def need_rows(images: pd.DataFrame) -> pd.Series:
    """Whether each image (index ``image_id``) has an image, patient, study or series id that was made here."""
    needed = pd.Series([is_made(IMAGE, name) for name in images.index], index=images.index, dtype=bool)
    for kind in SHOWN_KINDS[1:]:
        values = images[f"{kind}_id"].astype(object)
        made = [name for name in values.unique() if is_made(kind, name)]
        needed |= values.isin(made)
    return needed


def file_rows(failed: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of files that gave no image. ``failed`` has the columns id and file."""
    made = np.array([is_made(FILE, name) for name in failed["id"]], dtype=bool)
    rows = failed[made].drop_duplicates("id")
    empty = dict.fromkeys(COLUMNS[2:], "")
    return rows[["id"]].assign(file=[inert(printable(path)) for path in rows["file"]], **empty)
