"""Decide each image's id: its own name, or a keyed hash of its SOPInstanceUID, or of its path if the UID repeats."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common.preprocessing.pseudonyms import Pseudonyms
from common.preprocessing.records import instance_of


def named_by_path(files: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Return ``files`` (index source_id) with ``by_path``: whether another file with an image has its SOPInstanceUID.

    This looks at all files at once, so that no id depends on which file was converted first.
    """
    images = _images(files, records)
    images = images[images["instance_id"] != ""].drop_duplicates("source_id")
    repeated = images["source_id"][images["instance_id"].duplicated(keep=False)]
    return files.assign(by_path=files.index.isin(repeated))


def misnamed(files: pd.DataFrame, records: pd.DataFrame, pseudonyms: Pseudonyms) -> pd.Index:
    """Return the source ids of the files (from :func:`named_by_path`) whose images should have another id."""
    images = _images(files, records)
    names = files.loc[images["source_id"], ["own_id", "by_path"]]
    made = np.flatnonzero(names["own_id"] == "")
    wrong = np.zeros(len(images), dtype=bool)
    found = images["image_id"].to_numpy(dtype=object)
    columns = [images[name].to_numpy(dtype=object) for name in ("instance_id", "source_id", "frame")]
    by_path = names["by_path"].to_numpy()
    for row in made.tolist():
        instance, source, frame = (column[row] for column in columns)
        wrong[row] = found[row] != pseudonyms.image(instance_of(instance, source, by_path=bool(by_path[row])), frame)
    return pd.Index(images["source_id"][wrong].unique())


def _images(files: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    return records[(records["reason"] == "") & records["source_id"].isin(files.index)]
