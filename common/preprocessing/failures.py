"""List the files that gave no image, and tell which of them count as failures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.dicom.errors import NO_SLICE
from common.files import inert_cells

NO_SLICES = (*NO_SLICE, "special", "archive")  # reasons of files that aren't expected to be CT slices
CLAIMS_DICOM = ", though its name ends in .dcm"


def failure_rows(files: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of :func:`failure_table` for ``files``, a table of id, file_id, path, reason and message."""
    rows = files[["id", "file_id", "path", "reason", "message"]].rename(columns={"path": "file"}).astype(object)
    claims = (rows["reason"] == "not_dicom") & rows["file"].str.lower().str.endswith(".dcm")
    return rows.assign(message=rows["message"].where(~claims, rows["message"] + CLAIMS_DICOM))


def failure_table(records: pd.DataFrame, files: pd.DataFrame, refused: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each file, or frame of it, that gave no image: id, file_id, file, reason, message.

    ``records`` are those of the journal. ``files`` gives file_id and path by source_id. ``refused`` holds the rows of
    files that were never read. Only the columns of :func:`shown` may leave this machine.
    """
    bad = records[(records["reason"] != "") & records["source_id"].isin(files.index)]
    names = files.loc[bad["source_id"], ["file_id", "path"]].rename_axis("id").reset_index()
    rows = names.assign(reason=np.asarray(bad["reason"], object), message=np.asarray(bad["message"], object))
    return pd.concat([failure_rows(rows), refused]).sort_values(["reason", "id"], kind="stable", ignore_index=True)


def shown(failed: pd.DataFrame) -> pd.DataFrame:
    """Return failed.csv: id, reason and message of each failure. File names are left out: they may name a patient."""
    return inert_cells(failed[["id", "reason", "message"]])


def is_no_slice(failed: pd.DataFrame) -> pd.Series:
    """Whether each row of failed.csv is of a file that isn't meant to be a CT slice. A name in .dcm claims it is."""
    return failed["reason"].isin(NO_SLICES) & ~failed["message"].str.endswith(CLAIMS_DICOM)


def count_reasons(failed: pd.DataFrame) -> str:
    """Return the number of rows for each reason as text, as in ``truncated 2, rescale 1``."""
    return ", ".join(f"{reason} {count}" for reason, count in failed["reason"].value_counts().items())
