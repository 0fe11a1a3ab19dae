"""The list of files that gave no image, and which of them count as failures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.dicom.errors import NO_SLICE
from common.preprocessing.sources import printable

NO_SLICES = (*NO_SLICE, "special")  # reasons of files that never were to be slices


def failure_rows(files: pd.DataFrame) -> pd.DataFrame:
    """Return rows of failed.csv (id, file, reason, message) for files with file_id, path, reason and message."""
    columns = {
        "id": [printable(name) for name in files["file_id"]],
        "file": [printable(path) for path in files["path"]],
        "reason": files["reason"].tolist(),
        "message": files["message"].tolist(),
    }
    return pd.DataFrame(columns, dtype=object)


def failure_table(records: pd.DataFrame, files: pd.DataFrame, refused: pd.DataFrame) -> pd.DataFrame:
    """Return failed.csv: a row for each file that gave no image, the only place where original names stand.

    ``records``: the journal's; ``files`` (index source_id, with file_id and path) says which file is which,
    ``refused`` holds the rows of those that were never read.
    """
    bad = records[(records["reason"] != "") & records["source_id"].isin(files.index)]
    names = files.loc[bad["source_id"], ["file_id", "path"]]
    rows = names.assign(reason=np.asarray(bad["reason"], object), message=np.asarray(bad["message"], object))
    return pd.concat([failure_rows(rows), refused]).sort_values(["file", "reason"], ignore_index=True)


def is_no_slice(failed: pd.DataFrame) -> pd.Series:
    """Whether each row of failed.csv is for something else than a slice; what is named .dcm claims to be DICOM."""
    named = failed["file"].str.lower().str.endswith(".dcm")
    return failed["reason"].isin(NO_SLICES) & ~(named & (failed["reason"] == "not_dicom"))


def count_reasons(failed: pd.DataFrame) -> str:
    """Return how many files failed for each reason, as text."""
    return ", ".join(f"{reason} {count}" for reason, count in failed["reason"].value_counts().items())
