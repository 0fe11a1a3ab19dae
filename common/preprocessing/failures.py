"""The list of files that gave no image, and which of them count as failures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.dicom.errors import NO_SLICE
from common.files import inert_cells

NO_SLICES = (*NO_SLICE, "special", "archive")  # reasons of files that never were to be slices
CLAIMS_DICOM = ", though its name ends in .dcm"


def failure_rows(files: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each of some files (id, file_id, path, reason, message), as :func:`failure_table` does."""
    rows = files[["id", "file_id", "path", "reason", "message"]].rename(columns={"path": "file"}).astype(object)
    claims = (rows["reason"] == "not_dicom") & rows["file"].str.lower().str.endswith(".dcm")
    return rows.assign(message=rows["message"].where(~claims, rows["message"] + CLAIMS_DICOM))


def failure_table(records: pd.DataFrame, files: pd.DataFrame, refused: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each file, or frame of it, that gave no image: id, file_id, file, reason, message.

    ``records``: the journal's; ``files`` (index source_id, with file_id and path) says which file is which, ``refused``
    holds the rows of those that were never read. :func:`shown` is what may leave this machine.
    """
    bad = records[(records["reason"] != "") & records["source_id"].isin(files.index)]
    names = files.loc[bad["source_id"], ["file_id", "path"]].rename_axis("id").reset_index()
    rows = names.assign(reason=np.asarray(bad["reason"], object), message=np.asarray(bad["message"], object))
    return pd.concat([failure_rows(rows), refused]).sort_values(["reason", "id"], kind="stable", ignore_index=True)


def shown(failed: pd.DataFrame) -> pd.DataFrame:
    """Return failed.csv: id, reason and message of each failure; a file's name and path may name its patient."""
    return inert_cells(failed[["id", "reason", "message"]])


def is_no_slice(failed: pd.DataFrame) -> pd.Series:
    """Whether each row of failed.csv is for something else than a slice; what is named .dcm claims to be DICOM."""
    return failed["reason"].isin(NO_SLICES) & ~failed["message"].str.endswith(CLAIMS_DICOM)


def count_reasons(failed: pd.DataFrame) -> str:
    """Return how many files failed for each reason, as text."""
    return ", ".join(f"{reason} {count}" for reason, count in failed["reason"].value_counts().items())
