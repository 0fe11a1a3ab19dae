"""Labels from a file of the user's, joined with images by path, SOPInstanceUID or StudyInstanceUID."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.preprocessing.pseudonyms import Pseudonyms

LEVEL = "label_level"


@dataclass(frozen=True)
class JoinedLabels:
    """``labels``: index ``image_id``, a column for each label and ``label_level``: image, or study where the labels say
    something of the whole study. ``unmatched``: which rows of the label file (``row``) belong to no image.
    """

    labels: pd.DataFrame
    unmatched: pd.DataFrame


def join_labels(table: pd.DataFrame, images: pd.DataFrame, paths: pd.Series, pseudonyms: Pseudonyms) -> JoinedLabels:
    """Give each image the labels of its path, else of its SOPInstanceUID, else of its id here, else of its study.

    ``table``: index ``key``, a column for each label and ``row``; ``images``: the journal's records (index
    ``image_id``, with source_id, instance_id, study_id: pseudonyms), ``paths``: of the source's files, index source_id.
    The keys are made pseudonyms like the images' identifiers and then compared, so that no identifier is written.
    """
    keys = table.index
    row_of = [
        _lookup(paths.reindex(images["source_id"]).to_numpy(dtype=object), keys),
        _lookup(images["instance_id"].to_numpy(dtype=object), _hidden(keys, "instance", pseudonyms)),
        _lookup(images.index.to_numpy(dtype=object), keys),
        _lookup(images["study_id"].to_numpy(dtype=object), _hidden(keys, "study", pseudonyms)),
    ]
    place = np.select([found >= 0 for found in row_of], row_of, -1)
    level = np.select([found >= 0 for found in row_of], ["image", "image", "image", "study"], "")
    matched = place >= 0
    labels = table.drop(columns="row").iloc[place[matched]].set_axis(images.index[matched])
    # A row counts as matched where it names an image, even if that image has labels of its own.
    used = np.unique(np.concatenate([found[found >= 0] for found in row_of]))
    unused = np.setdiff1d(np.arange(len(table)), used)
    unmatched = pd.DataFrame({"row": np.sort(table["row"].to_numpy()[unused])})
    return JoinedLabels(labels.assign(**{LEVEL: level[matched]}), unmatched)


def _hidden(keys: pd.Index, kind: str, pseudonyms: Pseudonyms) -> pd.Index:
    return pd.Index([pseudonyms.of(kind, key) for key in keys])


def _lookup(values: np.ndarray, keys: pd.Index) -> np.ndarray:
    """Return the place of each value among the keys, -1 where it isn't there or empty."""
    found = keys.get_indexer(pd.Index(values, dtype=object))
    return np.where(values == "", -1, found)
