"""What has been converted so far, a line for each file, written as it happens: a killed run goes on from here."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from common.errors import WorkError
from common.preprocessing.growing import TAIL_BYTES, add_rows, adding_to, end_of_lines
from common.preprocessing.records import KEPT, Record

KINDS = {"str": str, "int": np.int64, "float": np.float64}
TYPES = {field.name: KINDS[str(field.type)] for field in dataclasses.fields(Record) if field.name in KEPT}
# Values that many rows share are held once: 874,035 rows must fit beside everything else.
SHARED = ("split", "reason", "message", "patient_id", "study_id", "series_id", "mended", "pixel_form")

SAME = (("source_id", "image_id"), ("digest", "image_hash"))  # the second mostly has the first's value


class Journal:
    """A CSV of records that only grows; its first line holds the options that the images were made with.

    Images made with other options are of no use, so a journal with another first line is begun anew. A line cut by a
    kill is dropped. Of a file that was converted several times the last conversion counts, and only if all its records
    are there.
    """

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        self.first_line = json.dumps(options | {"fields": KEPT}, sort_keys=True)
        self.file: io.TextIOWrapper | None = None

    def read(self) -> pd.DataFrame:
        """Return the records so far, a row for each; none where there is no journal of the same options."""
        if not self._usable():
            return _typed(pd.DataFrame(columns=list(KEPT)))
        try:
            with self.path.open("rb") as file:
                end = end_of_lines(file)
                file.seek(0)
                table = self._parse(io.BufferedReader(_Start(file, end)))
        except (OSError, ValueError):
            raise WorkError(
                f"{self.path}: damaged; remove it and start again (all images are converted anew)"
            ) from None
        return _last_conversions(_shared(_typed(table)))

    def _parse(self, lines: io.BufferedReader) -> pd.DataFrame:
        return pd.read_csv(
            lines,
            skiprows=1,
            names=list(KEPT),
            header=None,
            dtype={name: "category" if name in SHARED else kind for name, kind in TYPES.items()},
            keep_default_na=False,
            na_values={name: ["nan"] for name, kind in TYPES.items() if kind is np.float64},
        )

    def options(self) -> dict[str, Any]:
        """Return the options of the journal that there is; none where there is none that can be read."""
        try:
            with self.path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                found = json.loads(file.readline(TAIL_BYTES))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def exists(self) -> bool:
        """Whether images of any options were recorded."""
        return self.path.exists()

    def __enter__(self) -> Journal:
        """Open for adding: with the lines there are, or with none where they belong to other options."""
        if self._usable():
            with self.path.open("rb+") as file:
                file.truncate(end_of_lines(file))
            self.file = self.path.open("a", encoding="utf-8", newline="")
        else:
            self.file = self.path.open("w", encoding="utf-8", newline="")
            self.file.write(self.first_line + "\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self.file = self.file, None
        if file is not None:
            with suppress(OSError) if error is not None else nullcontext():  # the first error is the one to report
                file.close()

    def add(self, records: Iterable[Record]) -> None:
        """Add records and hand them to the operating system at once."""
        if self.file is None:
            raise ValueError("the journal is not open")
        with adding_to(self.path):
            add_rows(self.file, ([getattr(record, name) for name in KEPT] for record in records))

    def _usable(self) -> bool:
        try:
            with self.path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                return file.readline() == self.first_line + "\n"
        except FileNotFoundError:
            return False


def _last_conversions(table: pd.DataFrame) -> pd.DataFrame:
    """Return each file's records of its last conversion, if they are all there (they are written one after another)."""
    conversion = (table["frame"] == 1).cumsum()
    last = conversion.groupby(table["source_id"]).transform("max") == conversion
    table = table[last]
    return table[table.groupby("source_id")["frame"].transform("size") == table["frames"]].reset_index(drop=True)


def _shared(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with equal texts of two columns held once: that is true of nearly all rows."""
    for first, second in SAME:
        equal = table[first] == table[second]
        table[second] = table[second].where(~equal, table[first])
    return table


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype({name: "category" if name in SHARED else kind for name, kind in TYPES.items()})


class _Start(io.RawIOBase):
    """The first ``length`` bytes of a file, read as they are asked for: a million lines need not be held twice."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file = file
        self.left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self.file.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


def record_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return records as a table with the columns :data:`KEPT`, as :meth:`Journal.read` does."""
    return pd.DataFrame([[getattr(record, name) for name in KEPT] for record in records], columns=list(KEPT))
