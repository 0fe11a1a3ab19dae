"""The journal of a conversion: a line for each image or failure, written at once, so that a killed run can continue."""

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
# Columns whose values many rows share are held as categories: 874,035 rows must fit into memory with all else.
SHARED = ("split", "reason", "message", "patient_id", "study_id", "series_id", "mended", "pixel_form",
          "vendor", "kernel", "contrast", "reconstruction", "energy", "age", "sex")  # fmt: skip

SAME = (("source_id", "image_id"), ("digest", "image_hash"))  # the second mostly has the first's value


class Journal:
    """A CSV of records that only grows. Its first line holds the options that the images were made with.

    Images made with other options are of no use, so a journal with another first line is started anew. A line that a
    kill has cut is dropped. If a file was converted several times, the last conversion counts, and only if all its
    records are there.
    """

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        self.first_line = json.dumps(options | {"fields": KEPT}, sort_keys=True)
        self.file: io.TextIOWrapper | None = None

    def read(self) -> pd.DataFrame:
        """Return the records so far, a row for each; no rows without a journal of the same options."""
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
        """Return the options of the existing journal, empty if there is none or it can't be read."""
        try:
            with self.path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                found = json.loads(file.readline(TAIL_BYTES))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def exists(self) -> bool:
        """Whether there is a journal, with any options."""
        return self.path.exists()

    def __enter__(self) -> Journal:
        """Open for adding. Keep the existing lines if they belong to the same options."""
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
        """Add records and flush them."""
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
    """Return the records of each file's last conversion if all are there. They are written one after another."""
    conversion = (table["frame"] == 1).cumsum()
    last = conversion.groupby(table["source_id"]).transform("max") == conversion
    table = table[last]
    return table[table.groupby("source_id")["frame"].transform("size") == table["frames"]].reset_index(drop=True)


def _shared(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with equal texts of two columns held once in memory. Nearly all rows have equal ones."""
    for first, second in SAME:
        equal = table[first] == table[second]
        table[second] = table[second].where(~equal, table[first])
    return table


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype({name: "category" if name in SHARED else kind for name, kind in TYPES.items()})


class _Start(io.RawIOBase):
    """The first ``length`` bytes of a file, read on demand, so that a million lines aren't in memory twice."""

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
