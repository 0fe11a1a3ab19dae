"""Divide the images into strata: by number of kinds, by how they were scanned, by what a phantom knows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import UsageError
from rsna_dataset import LABELS, TRUTH_FILE, read_dataset_info, read_metadata

BLOOD = "blood_mm3"  # in the slice, of phantoms only
QUARTERS = {"slice_spacing_mm": "slice spacing, mm", "thickness_mm": "slice thickness, mm"}


def described_images(folder: Path, truth: Path | None = None) -> pd.DataFrame:
    """Return a dataset's metadata for the strata, joined with a phantom's truth file.

    ``truth`` None: if the dataset was made from a phantom, take the file in the input folder's ``phantom/``, provided
    that it knows all of its images. Raises UsageError if ``truth`` can't be read or knows none of the images.
    """
    described = read_metadata(folder, described=True)
    path = truth
    if truth is None:
        if read_dataset_info(folder).get("source", {}).get("kind") != "phantom":
            return described
        path = folder.parent.parent / "phantom" / TRUTH_FILE
    try:
        table = pd.read_csv(path, dtype={"id": str}, keep_default_na=False).set_index("id")
        blood = table[[f"{name}_mm3" for name in LABELS if name != "any"]].astype(float).sum(axis=1)
        known = pd.DataFrame({BLOOD: blood, "mimics": table["mimics"], "quirks": table["quirks"]})
        known = known[~known.index.duplicated()].reindex(described.index)
    except (OSError, ValueError, KeyError) as error:
        if truth is None:
            return described
        if isinstance(error, OSError):
            raise UsageError(f"--eval_truth={truth}: cannot be read ({error.strerror})") from None
        what = "it lacks columns of one" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UsageError(f"--eval_truth={truth}: not a phantom's truth file ({what})") from None
    if truth is not None and known[BLOOD].isna().all():
        raise UsageError(f"--eval_truth={truth}: knows none of the images of {folder}")
    if known[BLOOD].isna().any():  # another phantom's
        return described if truth is None else described.join(known)
    return described.join(known)


def strata_of(rows: pd.DataFrame, described: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """Return by stratum the part that each image belongs to, such as "two or more" kinds of hemorrhage."""
    kinds = rows[[name for name in LABELS if name != "any"]].sum(axis=1, skipna=False).clip(upper=2)
    named = kinds.map({0: "none", 1: "one", 2: "two or more"}).fillna("not labelled")
    strata = {"kinds of hemorrhage in the slice": named.to_numpy()}
    if described is None:
        return strata
    known = described.loc[rows.index]
    if "pixel_form" in known:  # datasets made by earlier versions lack some columns
        strata["stored pixels: bits/signed/slope/intercept"] = known["pixel_form"].to_numpy()
    for column, title in QUARTERS.items():
        if column not in known:
            continue
        values = known[column]
        if values.min() < values.max():
            strata[title] = parts_of_equal_size(values, 4).fillna("unknown").to_numpy(dtype=str)
    if BLOOD in known:
        strata |= phantom_strata(known)
    return strata


def parts_of_equal_size(values: pd.Series, number: int) -> pd.Series:
    """Cut values into ``number`` parts of about equal size; return each value's part as "lowest to highest value".

    Equal values share a part, so that there may be fewer parts. Missing values stay missing.
    """
    parts = pd.qcut(values, number, labels=False, duplicates="drop")
    texts = values.groupby(parts).agg(lambda part: f"{part.min():.4g} to {part.max():.4g}")
    return parts.map(texts)


def phantom_strata(known: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the strata that need a phantom's truth file: amount of blood, look-alikes of blood, unusual files."""
    blood = known[BLOOD]
    parts = pd.Series("none", known.index, dtype=object)
    parts[blood.isna()] = "unknown"
    bleeding = blood[blood > 0]
    if bleeding.nunique() > 2:
        parts[bleeding.index] = parts_of_equal_size(bleeding, 3)
    else:
        parts[bleeding.index] = "some"
    strata = {"blood in the slice, mm3": parts.to_numpy(dtype=str)}
    for column, title in (("mimics", "look-alikes of blood"), ("quirks", "what is unusual about the file")):
        texts = known[column].fillna("unknown").replace("", "none")
        strata[title] = texts.where(~texts.str.contains(";"), "several").to_numpy(dtype=str)
    return strata
