"""The RSNA 2019 task's labels, and preprocessed datasets on disk: ``<input_folder>/datasets/<name>/``.

preprocessing.py writes a dataset. Training and prediction read it through this module alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.cli.console import tell
from common.cli.values import HOLDOUT
from common.datasets.context import describe_lacks, find_neighbours, slice_places
from common.datasets.csv_tables import check_image_id, read_table
from common.datasets.image_files import SUFFIXES
from common.datasets.images import ImageDataset, Neighbours, Transform
from common.errors import UsageError, WorkError, list_some, nearest
from common.foreign import read_json
from common.preprocessing.groups import Identities, group_images, picture_keys
from common.preprocessing.labels import LEVEL, OF_STUDY
from common.preprocessing.series import NORMAL
from common.preprocessing.series_facts import SCAN

logger = logging.getLogger(__name__)

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
ANY = LABELS.index("any")
KINDS = LABELS[:ANY]
STUDY_LABELS = tuple(OF_STUDY.format(name) for name in LABELS)  # columns of metadata and folds: those of the study
LABELS_IN_SHORT = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))  # in the field's tables
LABEL_WEIGHTS = (1, 1, 1, 1, 1, 2)
METRIC = "weighted_log_loss"  # by which experiments are compared
PUBLISHED = {  # prevalences among stage 1's 674,258 training images (Flanders et al. 2020, doi 10.1148/ryai.2020190211)
    "epidural": 2_761 / 674_258,
    "intraparenchymal": 32_564 / 674_258,
    "intraventricular": 23_766 / 674_258,
    "subarachnoid": 32_122 / 674_258,
    "subdural": 42_496 / 674_258,
    "any": 97_103 / 674_258,
}

DATASET_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

TRUTH_FILE = "phantom_truth.csv"  # beside the CSVs of a phantom
TRUTH_MASKS = "phantom_truth"  # folder of a phantom with a mask of each image; nothing reads it without being asked
MASKS = "masks"  # folder of a dataset: <id>.npy, uint8 as the stored image, bit k (value 2**k) for KINDS[k]
DATASET_INFO = "dataset.json"
METADATA_FILE = "metadata.csv"
FAILED_FILE = "failed.csv"
AUDIT_FILE = "audit.html"
SAMPLE_FILE = "sample_submission.csv"
JOURNAL = ".converted.csv"
PUBLIC_NAMES = "public"  # replaces a key's fingerprint where the pseudonyms are the competition's own
HASHED_AT_ONCE = 2**20
FORMAT_VERSION = 1
DEV_IMAGES = 256  # that a rehearsal (--dev_enabled) takes of a split
IMAGE_OPTIONS = ("pre_size", "pre_window", "pre_type", "pre_crop")  # options of preprocessing that change the pictures
IDENTITY_COLUMNS = ("patient_id", "study_id", "group_id")  # say in metadata and folds whose image it is
SERIES_COLUMNS = dict.fromkeys((*SCAN, "orientation", "head"), "category")  # few values: texts would take 400 MB
PICTURE_COLUMNS = {"picture_hash": str, "hu_min": np.int64, "hu_max": np.int64, "solid": np.float64}


def dataset_folder(input_folder: Path, dataset: str) -> Path:
    """Return the folder of a dataset, which need not exist; UsageError for a name that could leave its parent."""
    if not DATASET_NAME.fullmatch(dataset):
        raise UsageError(f"--data_dataset={dataset}: use letters, digits, '_', '-' and '.', at most 100, not '.' first")
    return input_folder / "datasets" / dataset


def image_path(folder: Path, image_id: str, suffix: str = ".npy") -> Path:
    """Return the file of an image in a dataset's folder; WorkError for an id that is not allowed."""
    check_image_id(image_id)
    return folder / "images" / f"{image_id}{suffix}"


def fold_path(folder: Path, dataset: str, fold: int) -> Path:
    """Return the CSV of a fold in a dataset's folder."""
    return folder / f"dataset_{dataset}_fold_{fold}.csv"


def holdout_path(folder: Path, dataset: str) -> Path:
    """Return the CSV of the images held out of all folds, in a dataset's folder."""
    return folder / f"dataset_{dataset}_holdout.csv"


def read_dataset_info(folder: Path) -> dict[str, Any]:
    """Read a dataset's ``dataset.json``. ``image_form`` is ``hu`` or ``window``, ``format`` is npy or blosc2.

    Raises UsageError for a dataset that is incomplete or doesn't exist (naming those that do), WorkError for a file
    that is damaged or of another version.
    """
    path = folder / DATASET_INFO
    try:
        info = read_json(path)
        version = info["format_version"]
        info.setdefault("format", "npy")  # the first datasets don't say so
        known = info["image_form"] in ("hu", "window") and info["format"] in SUFFIXES
    except FileNotFoundError:
        raise _missing_dataset(folder) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError):
        raise WorkError(f"{path}: damaged; remove it and run python preprocessing.py again") from None
    if version != FORMAT_VERSION or not known:
        raise WorkError(f"{path}: of another version of this program; run python preprocessing.py again")
    return info


def key_fingerprint(folder: Path) -> str:
    """Return the fingerprint of the key that made a dataset's pseudonyms.

    Two datasets with equal fingerprints name the same patients alike. :data:`PUBLIC_NAMES` stands for the own
    pseudonyms of the competition or a phantom, "" for unknown. Errors as :func:`read_dataset_info`.
    """
    info = read_dataset_info(folder)
    if "pseudonyms" in info:
        return str(info["pseudonyms"])
    if info.get("source", {}).get("kind") in ("competition", "phantom"):
        return PUBLIC_NAMES
    try:  # an older dataset.json doesn't say so
        with (folder / JOURNAL).open(encoding="utf-8", errors="replace") as file:
            return str(json.loads(file.readline(HASHED_AT_ONCE))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def image_settings(info: dict[str, Any]) -> dict[str, Any]:
    """Return the :data:`IMAGE_OPTIONS` of a dataset from its dataset.json."""
    return {name: value for name, value in info.get("options", {}).items() if name in IMAGE_OPTIONS}


def is_labelled(info: dict[str, Any]) -> bool:
    """Whether a dataset has labels, from its dataset.json."""
    return info.get("labelled", 1) > 0


def whole_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with its columns :data:`LABELS` as int8; as they are, with NaN, where a label is missing."""
    whole = bool(table[list(LABELS)].notna().all(axis=None))
    return table.astype(dict.fromkeys(LABELS, np.int8)) if whole else table


def study_targets(rows: pd.DataFrame, studies: npt.ArrayLike) -> pd.DataFrame:
    """Return the labels of whole studies, float64 :data:`LABELS`, index: the sorted names in ``studies`` (N,).

    A study has the label that a row of the label table gave it. Otherwise it is 1 if a slice is, 0 if all slices are,
    and NaN if the labels of its slices leave it open.
    """
    labels, names = rows[list(LABELS)].astype(np.float64), np.asarray(studies)
    highest = labels.fillna(0).groupby(names).max()
    highest = highest.mask((highest < 1) & labels.isna().groupby(names).any())
    if STUDY_LABELS[0] not in rows:
        return highest
    own = rows[list(STUDY_LABELS)].set_axis(list(LABELS), axis=1).groupby(names).first()
    return own.fillna(highest)


def label_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of labels that ``table`` has: :data:`LABELS`, and :data:`STUDY_LABELS` if it has them."""
    return [*LABELS, *(name for name in STUDY_LABELS if name in table)]


def content_hash(folder: Path, options: dict[str, Any]) -> str:
    """Hash all that training sees: dataset.json's ``options``, the folds, and the metadata with each image's hash."""
    digest = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=16)
    for path in [folder / METADATA_FILE, *sorted(folder.glob("dataset_*.csv"))]:
        with path.open("rb") as file:
            while block := file.read(HASHED_AT_ONCE):  # a million images have 340 MB of metadata
                digest.update(block)
    return digest.hexdigest()


def read_metadata(folder: Path, *, described: bool = False) -> pd.DataFrame:
    """Read a dataset's ``metadata.csv``: index ``id``, one row for each image.

    The columns are split (train or test), patient_id, study_id, series_id, group_id (see :func:`known_groups`),
    slice_index, position_mm, row_spacing_mm, column_spacing_mm, rows, columns, mended (names joined by ``;``), and
    :data:`LABELS`, NaN where unknown; where rows of the label table name studies, also :data:`STUDY_LABELS`. For an
    older dataset group_id is computed from patients, studies and pictures.

    ``described`` adds columns for

    - the slice: thickness_mm, and geometry, which notes what is unusual about its place (see
      :func:`common.preprocessing.series.place_slices`)
    - the series: slice_spacing_mm, normal_x, normal_y, normal_z, and :data:`SERIES_COLUMNS` if the dataset has them
    - the picture as scanned: pixel_form (BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept), hu_min,
      hu_max, hu_mean, solid (share of pixels above -500 HU), picture_hash
    - the stored image: image_hash, and the box that cropping kept: crop_top, crop_left, crop_rows, crop_columns.

    Errors as :func:`read_dataset_info`.
    """
    labels = list(LABELS) if is_labelled(read_dataset_info(folder)) else []
    texts = ["id", "split", "patient_id", "study_id", "series_id", "mended"]
    numbers = ["position_mm", "row_spacing_mm", "column_spacing_mm", *labels]
    integers = ["slice_index", "rows", "columns"]
    if described:
        texts += ["geometry", "pixel_form", "picture_hash", "image_hash"]
        numbers += ["slice_spacing_mm", *NORMAL, "thickness_mm", "hu_mean", "solid"]
        integers += ["hu_min", "hu_max", "crop_top", "crop_left", "crop_rows", "crop_columns"]
    types = dict.fromkeys(texts, str) | dict.fromkeys(integers, np.int64) | dict.fromkeys(numbers, np.float64)
    optional = PICTURE_COLUMNS | SERIES_COLUMNS | {"group_id": str, LEVEL: str}
    table = read_table(folder / METADATA_FILE, types, optional | dict.fromkeys(STUDY_LABELS, np.float64))
    if LEVEL in table and STUDY_LABELS[0] not in table and (table[LEVEL] == "study").any():
        raise _earlier_labels(folder)
    if "group_id" not in table:
        table = table.assign(group_id=group_images(identities_of(table)))
    kept = {"group_id", *types, *STUDY_LABELS, *(SERIES_COLUMNS if described else ())}
    table = table[[name for name in table.columns if name in kept]]
    return table if labels else table.assign(**dict.fromkeys(LABELS, np.nan))


def read_fold(folder: Path, dataset: str, fold: int | str) -> pd.DataFrame:
    """Read a fold: index ``id``, sample_type (train or valid), :data:`LABELS`, :data:`IDENTITY_COLUMNS`.

    The labels are int8, or float64 with NaN where some are missing. :data:`STUDY_LABELS` are there too if the label
    table names studies: of those, a 1 is the label of no slice.

    The fold ``HOLDOUT`` trains on all images of the folds and validates on those held out of all folds.

    Raises UsageError for a dataset without labels and for an unknown dataset or fold (naming the known ones), WorkError
    for a damaged file.
    """
    if not is_labelled(read_dataset_info(folder)):
        raise UsageError(
            f"{folder}: the dataset has no labels to train on; give them to python preprocessing.py with "
            "--pre_labels=file.csv (predict.py --split=test works without)"
        )
    if fold == HOLDOUT:
        held_out = read_holdout(folder, dataset).assign(sample_type="valid")
        rows = pd.concat([read_fold(folder, dataset, 0).assign(sample_type="train"), held_out])
        _warn_of_split_groups(holdout_path(folder, dataset), rows)
        return rows
    path = fold_path(folder, dataset, fold)
    if not path.is_file():
        known = ", ".join(map(str, fold_numbers(folder, dataset))) or "none"
        raise UsageError(f"--data_fold={fold}: {folder} has no such fold; there are {known}")
    return _read_fold_table(path, ("train", "valid"))


def select_rows(rows: pd.DataFrame, split: str, dev_enabled: bool) -> pd.DataFrame:
    """Return the fold's rows of ``split``; for a rehearsal at most 256 of them, evenly spread."""
    selected = rows[rows["sample_type"] == split]
    if dev_enabled and len(selected) > DEV_IMAGES:
        selected = selected.iloc[np.linspace(0, len(selected) - 1, DEV_IMAGES).round().astype(int)]
    return selected


def fold_numbers(folder: Path, dataset: str) -> tuple[int, ...]:
    """Return the numbers of a dataset's folds, in order."""
    pattern = re.compile(rf"dataset_{re.escape(dataset)}_fold_(\d+)\.csv")
    matches = [pattern.fullmatch(file.name) for file in folder.iterdir()]
    return tuple(sorted(int(match[1]) for match in matches if match))


def rows_hash(*parts: pd.DataFrame) -> str:
    """Hash the images (index) and labels, also those of studies, of several tables, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in parts:
        digest.update("\n".join(rows.index).encode() + b"\0")
        digest.update(np.ascontiguousarray(rows[label_columns(rows)].to_numpy(dtype=np.float32)).tobytes())
    return digest.hexdigest()


def fold_hash(rows: pd.DataFrame) -> str:
    """Hash a fold (see :func:`read_fold`). Runs that train on it keep this hash in their checkpoints."""
    return rows_hash(*(rows[rows["sample_type"] == kind] for kind in ("train", "valid")))


def known_groups(rows: pd.DataFrame) -> np.ndarray:
    """Return the group of each image (N,), text. Folds never split a group, and intervals resample groups.

    A group is a patient, joined with the patients who share a study or an identical picture. An image without PatientID
    belongs to its study, without both to itself. ``rows`` (index ``id``) come from :func:`read_fold` or
    :func:`read_metadata`. If group_id is missing, patient_id and study_id decide, as far as they are given.
    """
    groups = rows["group_id"] if "group_id" in rows else group_images(identities_of(rows))
    return np.asarray(groups).astype(str)


def read_identities(folder: Path) -> pd.DataFrame:
    """Return to whom each image of a dataset belongs: index ``id``, :data:`IDENTITY_COLUMNS` and ``picture``.

    ``picture`` is the hash of the picture as scanned, or "" for a picture that links nobody. With --pre_group=study
    patient_id is empty. Errors as :func:`read_dataset_info`.
    """
    group = read_dataset_info(folder).get("options", {}).get("pre_group", "patient")
    types = dict.fromkeys(("id", "patient_id", "study_id"), str)
    rows = read_table(folder / METADATA_FILE, types, PICTURE_COLUMNS | SERIES_COLUMNS | {"group_id": str})
    images = identities_of(rows, group)
    groups = rows["group_id"] if "group_id" in rows else group_images(images)
    found = {"patient_id": images.patients, "study_id": images.studies, "group_id": groups, "picture": images.pictures}
    return pd.DataFrame(found, index=rows.index)


def identities_of(rows: pd.DataFrame, group: str = "patient") -> Identities:
    """Return to whom the images of ``rows`` (index: ids) belong, from the columns of the metadata that they have.

    ``group`` is --pre_group; ``study`` leaves out the patients.
    """
    nothing = np.full(len(rows), "", object)

    def texts(name: str) -> np.ndarray:
        return rows[name].to_numpy(dtype=object) if name in rows else nothing

    pictures = nothing
    if set(PICTURE_COLUMNS) <= set(rows.columns):
        pictures = picture_keys(rows.rename(columns={"picture_hash": "digest"}))
    found = Identities(texts("patient_id"), texts("study_id"), pictures, rows.index.to_numpy(dtype=object))
    return found.by_study() if group == "study" else found


def read_holdout(folder: Path, dataset: str) -> pd.DataFrame:
    """Read the images held out of all folds. Columns as :func:`read_fold`; sample_type is ``holdout``."""
    read_dataset_info(folder)
    path = holdout_path(folder, dataset)
    if not path.is_file():
        raise UsageError(
            f"{folder}: no images are held out; python preprocessing.py --pre_holdout=0.1 makes such a split"
        )
    return _read_fold_table(path, ("holdout",))


def has_holdout(info: Mapping[str, Any]) -> bool:
    """Whether a dataset holds images out of all its folds (--pre_holdout), from its dataset.json."""
    options = info.get("options", {})
    return int(options.get("pre_folds", 1)) > 1 and float(options.get("pre_holdout", 0)) > 0


def new_images(folder: Path) -> pd.DataFrame:
    """Return the metadata (index ``id``) of images in no fold: those of the test split and of --pre_holdout."""
    metadata = read_metadata(folder)
    kept_out = read_holdout(folder, folder.name).index if has_holdout(read_dataset_info(folder)) else []
    return metadata[(metadata["split"] == "test") | metadata.index.isin(kept_out)]


def _read_fold_table(path: Path, sample_types: Sequence[str]) -> pd.DataFrame:
    texts = dict.fromkeys(("id", "sample_type", "patient_id", "study_id"), str)
    gaps = read_dataset_info(path.parent).get("missing_labels", 0) > 0
    types = texts | dict.fromkeys(LABELS, np.float64 if gaps else np.int8)
    rows = read_table(path, types, {"group_id": str} | dict.fromkeys(STUDY_LABELS, np.float64))
    if not gaps and _has_earlier_labels(path.parent):
        raise _earlier_labels(path.parent)
    if "group_id" not in rows:
        rows = rows.assign(group_id=_groups_of_metadata(path.parent, rows))
    for columns, allowed in ((["sample_type"], sample_types), (list(LABELS), (0, 1))):
        wrong = ~(rows[columns].isin(allowed) | rows[columns].isna()).to_numpy()
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise WorkError(
                f"{path}: image {rows.index[row]}: {columns[column]} {rows[columns].iloc[row, column]} is not "
                f"{' or '.join(map(str, allowed))}; run python preprocessing.py again"
            )
    _warn_of_split_groups(path, rows)
    return whole_labels(rows)


def _has_earlier_labels(folder: Path) -> bool:
    """Whether an earlier version wrote the labels of studies as those of each of their slices."""
    path = folder / METADATA_FILE
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline().rstrip().split(",")
    if LEVEL not in header or STUDY_LABELS[0] in header:
        return False
    return bool((pd.read_csv(path, usecols=[LEVEL], dtype=str, keep_default_na=False)[LEVEL] == "study").any())


def _earlier_labels(folder: Path) -> WorkError:
    return WorkError(
        f"{folder / METADATA_FILE}: an earlier version wrote the labels of whole studies as those of each slice, which "
        "they aren't; run python preprocessing.py again (it converts no image anew)"
    )


def _groups_of_metadata(folder: Path, rows: pd.DataFrame) -> np.ndarray:
    """Compute the groups of a fold without group_id, from its patients and studies and the metadata."""
    images = identities_of(rows)
    if not (folder / METADATA_FILE).is_file():
        return group_images(images)
    groups = read_metadata(folder)["group_id"].reindex(rows.index).fillna("").to_numpy(dtype=object)
    return group_images(replace(images, pictures=groups))


def _warn_of_split_groups(path: Path, rows: pd.DataFrame) -> None:
    """Warn if an edited fold has a group in both train and valid: validation then looks too good."""
    sides = rows.groupby("group_id")["sample_type"].nunique()
    if (sides > 1).any():
        logger.warning(
            "%s: %d patients (or groups of them) stand in both train and valid; validation looks better than it is",
            path,
            int((sides > 1).sum()),
        )


def _missing_dataset(folder: Path) -> UsageError:
    known = sorted(path.parent.name for path in folder.parent.glob(f"*/{DATASET_INFO}"))
    if folder.is_dir():
        return UsageError(f"{folder}: the dataset is not complete; run python preprocessing.py again to finish it")
    listing = f"there are {', '.join(known)}" if known else "there are none"
    return UsageError(
        f"--data_dataset={folder.name}: no such dataset in {folder.parent} ({listing}); run python preprocessing.py "
        f"to make it{nearest(folder.name, known)}"
    )


def read_neighbours(folder: Path, ids: pd.Index, context: int) -> Neighbours:
    """Return the slices around images of a dataset, ``context`` on each side, by their positions along the series.

    Neighbours may be in no fold; that leaks nothing, since a series belongs to one patient. Raises UsageError for a
    dataset that cropped each slice to a box of its own.
    """
    if read_dataset_info(folder).get("options", {}).get("pre_crop", "none") != "none":
        raise UsageError(
            f"--data_context: each slice of {folder} was cropped to a box of its own, so that neighbours don't lie on "
            "each other; use a dataset of --pre_crop=none"
        )
    path = folder / METADATA_FILE
    names, rows = _all_neighbours(path, (path.stat().st_mtime_ns, path.stat().st_size), context)
    places = pd.Index(names).get_indexer(ids)
    if (places < 0).any():
        raise WorkError(f"{path}: has no row for {list_some(ids[places < 0])}; run python preprocessing.py again")
    return Neighbours(names, rows[places])


@lru_cache(maxsize=1)  # training and validation share it: reading a million rows takes seconds
def _all_neighbours(path: Path, stamp: tuple[int, int], context: int) -> tuple[np.ndarray, np.ndarray]:
    metadata = read_metadata(path.parent)
    series, _ = pd.factorize(metadata["series_id"])
    slice_index = metadata["slice_index"].to_numpy()
    places = slice_places(series, metadata["position_mm"].to_numpy(), slice_index)
    rows = find_neighbours(series, places, slice_index, context)
    from common.training.distributed import is_main  # here, since it imports torch

    if is_main():
        tell(f"{path.parent}: --data_context={context}: {describe_lacks(rows)}")
    return metadata.index.to_numpy(dtype=np.str_), rows


class RSNADataset(ImageDataset):
    """Images of a preprocessed dataset with their six labels."""

    def __init__(
        self, folder: Path, rows: pd.DataFrame, pipeline: Transform, image_size: int, seed: int, context: int = 0
    ) -> None:
        """``rows`` come from a fold or the metadata: index ``id``, and columns :data:`LABELS` if they are known.

        A label that is NaN is missing: no loss and no metric counts it.

        ``context``: the number of neighbouring slices on each side that go with each image.
        """
        labelled = set(LABELS) <= set(rows.columns) and bool(rows[list(LABELS)].notna().any(axis=None))
        targets = rows[list(LABELS)].to_numpy(dtype=np.float32) if labelled else None
        info = read_dataset_info(folder)
        form, suffix = info["image_form"], SUFFIXES[info["format"]]
        around = read_neighbours(folder, rows.index, context) if context else None
        super().__init__(
            folder / "images", rows.index.to_numpy(), targets, pipeline, image_size, seed, form, suffix, around
        )
