"""Reads the project's CSV tables, one row for each image. Checks the ids, since they become file names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UserError, WorkError
from common.spreadsheets import TableFile, checked_numbers, first_row, read_texts

IMAGE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def check_image_id(image_id: str) -> None:
    """Raise WorkError unless ``image_id`` is a plain file name that can't leave its folder."""
    if not IMAGE_ID.fullmatch(image_id):
        raise WorkError(f"image id {image_id!r} is not allowed: use letters, digits, '_', '-' and '.', not '.' first")


def check_ids(path: TableFile, ids: Sequence[str], image: np.ndarray, rows: Sequence[int]) -> None:
    """Raise WorkError, naming the row, for the first id that is not a plain file name.

    ``image`` (N,) gives each row's place in ``ids``, ``rows`` (N,) its number in the file.
    """
    wrong = np.array([IMAGE_ID.fullmatch(image_id) is None for image_id in ids], dtype=bool)
    if wrong.any():
        place, row = first_row(wrong[image], rows)
        try:
            check_image_id(ids[image[place]])
        except WorkError as error:
            raise WorkError(f"{path}: row {row}: {error}") from None


def read_table(path: Path, types: dict[str, Any], optional: dict[str, Any] | None = None) -> pd.DataFrame:
    """Read the columns ``types`` (name → type), and those of ``optional`` that the file has; index ``id``.

    Raises WorkError for a missing or damaged file and for an id that is repeated or not a plain file name.
    """
    known = (optional or {}) | types
    numbers = [name for name, kind in known.items() if kind is not str]
    try:
        # Text stays as it is, even "NA" or nothing. An empty number becomes NaN. All columns are read, since pandas
        # overlooks a row with too many fields if asked for some columns only.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=known,
                index_col=False,
                keep_default_na=False,
                na_values={name: [""] for name in numbers},
            )
        table = table[[*types, *(name for name in known if name in table and name not in types)]]
    except OSError as error:
        raise WorkError(f"{path}: cannot be read ({error.strerror}); run python preprocessing.py again") from None
    except (ValueError, KeyError, OverflowError, pd.errors.ParserWarning):
        raise WorkError(f"{_table_fault(path, types)}; run python preprocessing.py again") from None
    unique, ids = pd.factorize(table["id"])
    check_ids(path, ids, unique, table.index + 2)
    if len(ids) < len(table):
        repeated = table["id"].duplicated().to_numpy()
        raise WorkError(f"{path}: image {table['id'][repeated].iloc[0]} stands there twice")
    return table.set_index("id")


def _table_fault(path: Path, types: dict[str, Any]) -> str:
    """Say which column and row of a CSV does not have these types."""
    try:
        read_texts(path, list(types))
        for name, kind in types.items():
            if kind is not str:
                texts = read_texts(path, ["id", name])
                given = texts[texts[name] != ""] if kind is np.float64 else texts
                checked_numbers(path, given[name])
    except UserError as error:
        return str(error)
    return f"{path}: damaged"
