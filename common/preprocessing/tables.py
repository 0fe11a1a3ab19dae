"""Make the tables beside a dataset's images: metadata, labels without an image. No label is known here by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import WorkError
from common.preprocessing.series import NORMAL, place_slices
from common.preprocessing.series_facts import OF_SERIES, SCAN, series_facts

REPEATED_UID = "repeated_uid"


def metadata_table(images: pd.DataFrame, labels: pd.DataFrame, ties: np.ndarray | None = None) -> pd.DataFrame:
    """Return metadata.csv: a row for each image, sorted by split, study, series and slice.

    ``images``: records of the journal (index ``image_id``) with their ``group_id``. ``labels``: index ``id``, a column
    for each label. ``ties`` (N,): texts that order slices with the same position or none; None stands for their ids.
    """
    series = first_known(images, "series_id", "study_id")
    table = images.join(place_slices(images, series, ties))
    facts = series_facts(table, series, first_known(images, "study_id", "series_id"))
    table = table.join(facts[OF_SERIES].loc[series].set_axis(table.index))
    known = labels.reindex(table.index).where(table["split"] == "train")  # float64, NaN where unknown
    table = table.join(known)
    columns = [
        "split",
        "patient_id",
        "study_id",
        "series_id",
        "group_id",
        "slice_index",
        "position_mm",
        "slice_spacing_mm",
        *NORMAL,
    ]
    asked = [name for name in ("age", "sex") if (images[name] != "").any()]  # --pre_demographics=1
    columns += ["geometry", "row_spacing_mm"]
    columns += ["column_spacing_mm", "thickness_mm", "rows", "columns", "pixel_form", "mended", "hu_min", "hu_max"]
    columns += ["hu_mean", "solid", "picture_hash", "crop_top", "crop_left", "crop_rows", "crop_columns"]
    columns += ["image_hash", "skull_mm2", *SCAN, "series_number", *OF_SERIES, *asked, *labels.columns]
    table = table.rename(columns={"digest": "picture_hash"})[columns].rename_axis("id").reset_index()
    table = table.astype(dict.fromkeys(("split", "study_id", "series_id"), str))  # categories would not sort as text
    columns = ["split", "study_id", "series_id", "slice_index", "id"]
    return table.sort_values(columns, ascending=[False, True, True, True, True], ignore_index=True)


def first_known(images: pd.DataFrame, *columns: str) -> np.ndarray:
    """Return for each image (N,) the first of ``columns`` that is not empty, else its own id, to group by."""
    found = images.index.to_numpy(dtype=object)
    for column in reversed(columns):
        values = images[column].to_numpy(dtype=object)
        found = np.where(values != "", values, found)
    return found


def unique_images(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records that have an image, index ``image_id``. Raise WorkError if two share an id."""
    images = records[records["reason"] == ""].set_index("image_id")
    twice = images.index[images.index.duplicated()]
    if len(twice):
        raise WorkError(
            f"image id {twice[0]!r} is given twice: by a frame of a multi-frame file and by another file; rename one"
        )
    return images


def mark_repeated(images: pd.DataFrame) -> pd.DataFrame:
    """Return ``images`` with :data:`REPEATED_UID` added to ``mended`` for files that share a SOPInstanceUID."""
    files = images.groupby(images["instance_id"].astype(object))["source_id"].transform("nunique")
    repeated = (files > 1) & (images["instance_id"] != "")
    mended = images["mended"].astype(object)
    joined = np.where(mended == "", REPEATED_UID, mended + f";{REPEATED_UID}")
    return images.assign(mended=np.where(repeated, joined, mended))


def unmatched_labels(ids: pd.Index, failed: pd.DataFrame) -> pd.DataFrame:
    """Return the id and reason of each labelled id without an image."""
    reasons = failed.drop_duplicates("id").set_index("id")["reason"].reindex(ids).fillna("no_file")
    return pd.DataFrame({"id": ids, "reason": reasons.to_numpy()})


def remove_leftovers(folder: Path, images: Iterable[str], tables: Iterable[Path]) -> None:
    """Remove what earlier runs left: all images and fold tables that aren't in ``images`` or ``tables``."""
    keep = {*images} | {path.name for path in tables}
    found = [
        *(folder / "images").iterdir(),
        *folder.glob("dataset_*_fold_*.csv"),
        *folder.glob("dataset_*_holdout.csv"),
    ]
    for path in found:
        if path.name not in keep and path.is_file():
            path.unlink()
