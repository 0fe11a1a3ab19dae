"""Read every image of a finished dataset again and compare it with the metadata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from common.datasets.image_files import load_image
from common.preprocessing.convert import picture_hash
from common.preprocessing.records import ImageForm

IMAGES_PER_CHUNK = 64
FAULTS = {
    "missing": "the file is missing",
    "unreadable": "the file is cut or damaged",
    "shape": "the image has another shape or type",
    "hash": "the pixels are others",
}


def verify_images(folder: Path, metadata: pd.DataFrame, form: ImageForm, jobs: int) -> Iterator[pd.DataFrame]:
    """Read images in ``jobs`` processes. Yield tables of id and fault, a key of :data:`FAULTS` or "".

    ``folder`` holds the image files. ``metadata`` (index ``id``) has crop_rows, crop_columns and image_hash.
    """
    import joblib

    wanted = metadata[["crop_rows", "crop_columns", "image_hash"]]
    chunks = (wanted.iloc[start : start + IMAGES_PER_CHUNK] for start in range(0, len(wanted), IMAGES_PER_CHUNK))
    calls = (joblib.delayed(_verify_chunk)(folder, chunk, form) for chunk in chunks)
    yield from joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="3*n_jobs", batch_size=1)(
        calls
    )


def _verify_chunk(folder: Path, wanted: pd.DataFrame, form: ImageForm) -> pd.DataFrame:
    faults = [
        find_fault(folder / f"{row.Index}{form.suffix}", form.stored_shape(row.crop_rows, row.crop_columns), form.dtype,
                   row.image_hash)
        for row in wanted.itertuples()
    ]  # fmt: skip
    return pd.DataFrame({"id": wanted.index, "fault": faults})


def find_fault(path: Path, shape: Sequence[int], dtype: str, image_hash: str) -> str:
    """Return what is wrong with an image file, a key of :data:`FAULTS`, or "" if nothing is."""
    try:
        image = load_image(path)
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError):
        return "unreadable"
    if image.shape != tuple(shape) or image.dtype.name != dtype:
        return "shape"
    return "" if picture_hash(image) == image_hash else "hash"
