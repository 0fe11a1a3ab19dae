"""The tables beside a dataset's images: metadata, failures, labels without an image. Knows no label by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.preprocessing.series import place_slices


def metadata_table(images: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Return metadata.csv: a row for each image in the order split, study, series, slice.

    ``images``: records of the journal (index ``image_id``); ``labels``: index ``id``, a column for each label.
    """
    table = images.join(place_slices(images, first_known(images, "series_id", "study_id")))
    known = labels.reindex(table.index).where(table["split"] == "train")  # float64, NaN where unknown
    table = table.join(known)
    columns = ["split", "patient_id", "study_id", "series_id", "slice_index", "position_mm", "row_spacing_mm"]
    columns += ["column_spacing_mm", "thickness_mm", "rows", "columns", "pixel_form", "mended", "hu_min", "hu_max"]
    columns += ["hu_mean", "solid", "picture_hash", "crop_top", "crop_left", "crop_rows", "crop_columns"]
    columns += ["image_hash", *labels.columns]
    table = table.rename(columns={"digest": "picture_hash"})[columns].rename_axis("id").reset_index()
    table = table.astype(dict.fromkeys(("split", "study_id", "series_id"), str))  # no categories: sorted as text
    order = ["split", "study_id", "series_id", "slice_index", "id"]
    return table.sort_values(order, ascending=[False, True, True, True, True], ignore_index=True)


def first_known(images: pd.DataFrame, *columns: str) -> np.ndarray:
    """Return for each image the first of ``columns`` that is not empty, else its own id: something to group by."""
    found = images.index.to_numpy(dtype=object)
    for column in reversed(columns):
        values = images[column].to_numpy(dtype=object)
        found = np.where(values != "", values, found)
    return found


def failure_rows(files: pd.DataFrame, reason: Any, message: Any) -> pd.DataFrame:
    """Return rows of failed.csv for files with the columns image_id and folder."""
    parts = [f"{Path(folder).name}/{name}.dcm" for folder, name in zip(files["folder"], files["image_id"], strict=True)]
    return pd.DataFrame({"id": files["image_id"], "file": parts, "reason": reason, "message": message})


def failure_table(records: pd.DataFrame, files: pd.DataFrame, refused: pd.DataFrame) -> pd.DataFrame:
    """Return failed.csv: a row for each file that gave no image.

    ``files`` (index ``image_id``, with folder) says where they lie, ``refused`` holds rows that were never read.
    """
    bad = records[records["reason"] != ""]
    rows = files.loc[bad.index].reset_index()
    failed = pd.concat([failure_rows(rows, bad["reason"].tolist(), bad["message"].tolist()), refused])
    return failed.sort_values(["file", "reason"], ignore_index=True)


def unmatched_labels(labels: pd.DataFrame, images: pd.DataFrame, failed: pd.DataFrame) -> pd.DataFrame:
    """Return id and reason of the labelled ids that have no image."""
    ids = pd.Index(sorted(labels.index.difference(images.index)))
    reasons = failed.drop_duplicates("id").set_index("id")["reason"].reindex(ids).fillna("no_file")
    return pd.DataFrame({"id": ids, "reason": reasons.to_numpy()})


def remove_leftovers(folder: Path, image_ids: Iterable[str], tables: Iterable[Path]) -> None:
    """Remove what an earlier or killed run left: images and folds other than these, cut files."""
    keep = {f"{image_id}.npy" for image_id in image_ids} | {path.name for path in tables}
    leftovers = [path for path in (folder / "images").iterdir() if path.is_file()]
    leftovers += folder.glob("dataset_*_fold_*.csv")
    for path in leftovers:
        if path.name not in keep:
            path.unlink()
