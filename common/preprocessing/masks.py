"""Masks of a user's own, taken into a dataset: cropped and resized as the images were."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from common.datasets.image_files import read_mask
from common.dicom.pictures import resize_mask
from common.errors import UsageError
from common.preprocessing.convert import write_image
from common.preprocessing.folder import list_files

SUFFIX = ".npy"


def check_source(source: Path, dataset: Path) -> None:
    """Raise UsageError if ``source`` is no folder, or lies in the folder ``dataset``, whose masks are replaced."""
    if not source.is_dir():
        raise UsageError(f"--pre_masks={source}: is no folder; name the one that holds <image id>{SUFFIX}")
    if source.resolve().is_relative_to(dataset.resolve()):
        raise UsageError(f"--pre_masks={source}: is part of the dataset itself; name a folder outside {dataset}")


def take_masks(source: Path, folder: Path, images: pd.DataFrame, size: int, kinds: int) -> str:
    """Write the masks in ``source`` to ``folder``, placed as the dataset's images, and return in words how many fit.

    ``source`` has <image id>.npy: uint8 (rows, columns) as the file that the image was made from, a bit for each of
    ``kinds``. ``images`` is the dataset's metadata by id: rows, columns and the box ``crop_…``. ``size`` as of
    :func:`common.dicom.pictures.resize_area`. What was in ``folder`` is replaced once all masks are written.

    Raises UsageError if ``source`` has no mask of these images. Raises WorkError, naming the file, for
    a mask of another shape or type, or with a bit beyond the kinds.
    """
    names = list_files(source, SUFFIX)["name"]
    fitting = images.loc[images.index.intersection(names)]
    if fitting.empty:
        example = images.index[0]
        raise UsageError(
            f"--pre_masks={source}: none of its {len(names)} {SUFFIX} files is named after an image of the dataset, as "
            f"{example}{SUFFIX} would be"
        )
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for row in fitting.itertuples():
            mask = read_mask(source / f"{row.Index}{SUFFIX}", (row.rows, row.columns), kinds)
            bottom, right = row.crop_top + row.crop_rows, row.crop_left + row.crop_columns
            box = mask[row.crop_top : bottom, row.crop_left : right]
            write_image(partial / f"{row.Index}{SUFFIX}", resize_mask(box, size))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    said = f"masks of {len(fitting)} of {len(images)} images"
    return said + f"; {len(names) - len(fitting)} masks fit no image" * (len(names) > len(fitting))


def remove_masks(folder: Path) -> bool:
    """Remove a dataset's masks, and what a killed run left of new ones. Return whether there were masks."""
    there = folder.is_dir()
    for old in (folder, _partial(folder)):
        shutil.rmtree(old, ignore_errors=True)
    return there


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")
