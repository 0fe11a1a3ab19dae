"""Read CSV tables from any program: chosen columns as texts, with the rows' numbers in the file.

Excel alone writes commas or semicolons, a byte order mark or none, UTF-8 or UTF-16 with tabs, a first line ``sep=;``,
rows of nothing but separators, and numbers with a decimal comma. Column names are compared without capitals and without
spaces around them.
"""

from __future__ import annotations

import codecs
import csv
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pandas as pd

from common.errors import UsageError, UserError, WorkError, nearest, nearest_file

SEPARATORS = (",", ";", "\t", "|")
HEADER_BYTES = 2**16  # the header must end within these
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TableFile(Protocol):
    """A path, or a file in an archive."""

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the content as a file; OSError if it can't be read."""
        ...


@dataclass(frozen=True)
class TableForm:
    """The form of a table: encoding, separator of its fields, number of lines before the header, and the header."""

    encoding: str
    separator: str
    skipped: int
    header: tuple[str, ...]

    def place(self, name: str) -> int | None:
        """Return the place of the column with this name, compared by :func:`plain_name`; None if there is none."""
        names = [plain_name(known) for known in self.header]
        return names.index(plain_name(name)) if plain_name(name) in names else None

    def has(self, names: Sequence[str]) -> bool:
        """Whether there is a column for each of ``names``."""
        return all(self.place(name) is not None for name in names)


def plain_name(name: str) -> str:
    """Return a column's name without capitals and without spaces around it."""
    return name.strip().casefold()


def table_form(path: TableFile) -> TableForm:
    """Find the form of a table from its beginning; UsageError if it can't be read or is empty."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from None
    encoding = "utf-16" if start.startswith(UTF_16) else "utf-8-sig"
    lines = start.decode(encoding, errors="ignore").splitlines()
    skipped, separators = 0, SEPARATORS
    while skipped < len(lines) and (_named_separator(lines[skipped]) or not lines[skipped].strip()):
        separators = _named_separator(lines[skipped]) or separators
        skipped += 1
    if skipped == len(lines):
        raise UsageError(f"{path}: not a CSV file (it has no header)")
    text = "\n".join(lines[skipped:])
    try:
        headers = {one: next(csv.reader(io.StringIO(text), delimiter=one)) for one in separators}
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV file ({error})") from None
    separator = max(headers, key=lambda one: len(headers[one]))
    return TableForm(encoding, separator, skipped, tuple(name.strip() for name in headers[separator]))


def _named_separator(line: str) -> tuple[str, ...]:
    """Return the separator that Excel's first line names, as in ``sep=;``; empty for any other line."""
    name = line.strip("\r\n ")
    return (name[4],) if name[:4].lower() == "sep=" and name[4:] in SEPARATORS else ()


def read_texts(path: TableFile, columns: Sequence[str]) -> pd.DataFrame:
    """Read columns as text. The index is the row's number in the file; rows that are empty in all columns are left out.

    Raises UsageError if the file can't be read, WorkError if it lacks a column, has it twice, or has a row with too
    many fields.
    """
    form = table_form(path)
    missing = [name for name in columns if form.place(name) is None]
    if missing:
        hint = nearest(missing[0], form.header)
        raise WorkError(f"{path}: has no column {', '.join(missing)}; expected {','.join(columns)}{hint}")
    counts = Counter(map(plain_name, form.header))
    for name in columns:
        if counts[plain_name(name)] > 1:
            raise WorkError(f"{path}: has the column {name} {counts[plain_name(name)]} times; leave one of them")
    try:
        # Read all columns: with only some of them pandas overlooks a row with too many fields, and a decimal comma
        # would turn 0,5 into 0.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                file,
                sep=form.separator,
                skiprows=form.skipped,
                dtype=str,
                encoding=form.encoding,
                index_col=False,
                keep_default_na=False,
                skip_blank_lines=False,
            )
    except pd.errors.ParserWarning:
        raise WorkError(f"{path}: row {form.skipped + 2}: has more fields than the header") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    frame = frame.iloc[:, [form.place(name) for name in columns]].set_axis(list(columns), axis=1).fillna("")
    frame.index += 2 + form.skipped
    blank = np.logical_and.reduce([(frame[name] == "").to_numpy() for name in columns])
    return frame[~blank]


def to_numbers(texts: pd.Series) -> np.ndarray:
    """Convert texts with a decimal point or comma to numbers (N,), float64; NaN for text that is no number."""
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    rest = np.isnan(numbers)
    if rest.any():
        with_point = texts[rest].str.replace(",", ".", regex=False)  # a text with two commas is no number either way
        numbers[rest] = pd.to_numeric(with_point, errors="coerce")
    return numbers


def checked_numbers(path: TableFile, column: pd.Series) -> np.ndarray:
    """Convert a column of texts to float64; WorkError, with the row, for a text that is empty or no finite number."""
    codes, texts = pd.factorize(column)
    values = to_numbers(pd.Series(texts, dtype=object))
    wrong = ~np.isfinite(values)
    if wrong.any():
        place, row = first_row(wrong[codes], column.index)
        text = column.iloc[place]
        fault = "is empty" if not text.strip() else f"{text!r} is not a number"
        raise WorkError(f"{path}: row {row}: {column.name} {fault}")
    return values[codes]


def first_row(mask: np.ndarray, rows: Sequence[int]) -> tuple[int, int]:
    """Return the place of the first True in ``mask`` (N,), and its row's number in the file."""
    place = int(np.argmax(mask))
    return place, int(rows[place])


def _unreadable(path: TableFile, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{path}: no such file{nearest_file(path) if isinstance(path, Path) else ''}")
    if isinstance(error, OSError):
        return UsageError(f"{path}: cannot be read ({error.strerror})")
    if isinstance(error, UnicodeError):
        return UsageError(f"{path}: not a CSV file of UTF-8 text; save it as 'CSV UTF-8'")
    return UsageError(f"{path}: not a CSV file ({' '.join(str(error).split())})")  # pandas' errors
