"""The competition's file formats, the datasets on disk, the order of the labels, and the images as a dataset."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.datasets.images import ImageDataset, Transform
from common.errors import UsageError, WorkError, nearest
from common.files import write_csv

logger = logging.getLogger(__name__)

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
LABEL_WEIGHTS = (1, 1, 1, 1, 1, 2)

DATASET_FORMAT_VERSION = 1
INFO_FILE = "dataset.json"
METADATA_FILE = "metadata.csv"
FAILED_FILE = "failed.csv"
SAMPLE_FILE = "sample_submission.csv"
IMAGE_FOLDER = "images"
COMPETITION_FOLDER = "rsna-intracranial-hemorrhage-detection"
STAGES = (2, 1)

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class CompetitionSource:
    """The competition's files of one stage; ``test_images`` and ``sample_submission`` are None where there are none."""

    stage: int
    train_images: Path
    train_csv: Path
    test_images: Path | None
    sample_submission: Path | None


def check_image_id(image_id: str) -> None:
    """Raise WorkError unless ``image_id`` is a plain file name that can't leave its folder."""
    if not _ID.fullmatch(image_id):
        raise WorkError(f"the image id {image_id!r} is not allowed: letters, digits, '_', '-' and '.', not '.' first")


def find_competition(folder: Path) -> CompetitionSource | None:
    """Return the competition's files below ``folder``: the highest stage that has both training images and labels.

    Both namings of the folders (``stage_2_train``, ``stage_1_train_images``) are known, also inside a folder
    ``rsna-intracranial-hemorrhage-detection``.
    """
    for stage in STAGES:
        for base in (folder, folder / COMPETITION_FOLDER, folder / COMPETITION_FOLDER / COMPETITION_FOLDER):
            labels = base / f"stage_{stage}_train.csv"
            train = _first_folder(base / f"stage_{stage}_train", base / f"stage_{stage}_train_images")
            if train is not None and labels.is_file():
                test = _first_folder(base / f"stage_{stage}_test", base / f"stage_{stage}_test_images")
                sample = base / f"stage_{stage}_sample_submission.csv"
                return CompetitionSource(stage, train, labels, test, sample if sample.is_file() else None)
    return None


def read_competition_labels(path: Path) -> pd.DataFrame:
    """Read ``ID,Label`` rows, one for each image and label, as a table: index ``id``, int8 columns :data:`LABELS`.

    Rows that repeat another are counted once, with a warning. Raises WorkError naming file and row for a missing
    column, an unknown class, a label other than 0 and 1, rows that contradict each other and images that lack a label.
    """
    table, repeated = _read_long(path)
    values = table.to_numpy()
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        row, column = wrong[0]
        raise WorkError(f"{path}: the label {table.index[row]}_{LABELS[column]} is {values[row, column]:g}, not 0 or 1")
    if repeated:
        logger.warning("%s: %d rows repeat another row and are counted once", path, repeated)
    return table.astype(np.int8)


def read_submission(path: Path) -> pd.DataFrame:
    """Read a submission (``ID,Label`` with probabilities): index ``id``, float64 columns :data:`LABELS`.

    Raises WorkError as :func:`read_competition_labels` does, and for a row that stands twice.
    """
    table, repeated = _read_long(path)
    if repeated:
        raise WorkError(f"{path}: {repeated} rows stand twice")
    return table


def read_predictions(path: Path) -> pd.DataFrame:
    """Read probabilities as a submission or as a row for each image (``id`` and a column for each label).

    Index ``id``, float64 columns :data:`LABELS`. UsageError where there is no such file; WorkError naming file and row
    for what is no probability.
    """
    columns = _read_header(path)
    if "ID" in columns and "Label" in columns:
        table = read_submission(path)
    else:
        _check_columns(path, columns, ("id", *LABELS))
        text = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=["id", *LABELS])
        _check_unique(path, text["id"])
        numbers = {label: _numbers(path, text[label], text["id"], label) for label in LABELS}
        table = pd.DataFrame(numbers, index=pd.Index(text["id"], name="id"))
    _check_probabilities(path, table)
    return table


def write_submission(probabilities: pd.DataFrame, sample_path: Path, path: Path) -> None:
    """Write ``probabilities`` (index ``id``, columns :data:`LABELS`) with the rows of the sample submission, in order.

    Raises WorkError where an image of the sample has no row.
    """
    ids, labels = _split_ids(sample_path, _read_text(sample_path, ("ID", "Label"))["ID"])
    rows = probabilities.index.get_indexer(ids)
    if (rows < 0).any():
        raise WorkError(f"{sample_path}: image {ids[int(np.argmin(rows))]} has no prediction")
    values = probabilities[list(LABELS)].to_numpy(dtype=np.float64)[rows, labels]
    names = np.asarray(ids, dtype=object) + "_" + np.asarray(LABELS, dtype=object)[labels]
    write_csv(path, pd.DataFrame({"ID": names, "Label": values}))


def check_submission(path: Path, sample_path: Path) -> None:
    """Raise WorkError unless ``path`` has each row of the sample once and no other, with a probability in [0, 1]."""
    table, sample = read_submission(path), read_submission(sample_path)
    missing, more = sample.index.difference(table.index), table.index.difference(sample.index)
    if len(missing) or len(more):
        example = (missing if len(missing) else more)[0]
        raise WorkError(f"{path}: {len(missing)} images missing, {len(more)} too many (such as {example})")
    _check_probabilities(path, table)


def dataset_folder(input_folder: Path, dataset: str) -> Path:
    """Return the folder of a dataset, existing or not; UsageError for a name that could leave ``datasets/``."""
    if not _ID.fullmatch(dataset):
        raise UsageError(f"--data_dataset={dataset!r}: use letters, digits, '_', '-' and '.', not '.' first")
    return input_folder / "datasets" / dataset


def image_path(folder: Path, image_id: str) -> Path:
    """Return where the image is stored."""
    return folder / IMAGE_FOLDER / f"{image_id}.npy"


def fold_path(folder: Path, dataset: str, fold: int) -> Path:
    """Return where the fold's CSV is stored."""
    return folder / f"dataset_{dataset}_fold_{fold}.csv"


def read_dataset_info(folder: Path) -> dict[str, Any]:
    """Read ``dataset.json``. UsageError, with the datasets that exist, where there is none; WorkError for a bad one."""
    path = folder / INFO_FILE
    if not path.is_file():
        found = sorted(other.parent.name for other in folder.parent.glob(f"*/{INFO_FILE}"))
        listing = f"there are {', '.join(found)}{nearest(folder.name, found)}" if found else "there are none"
        raise UsageError(
            f"--data_dataset={folder.name}: no such dataset in {folder.parent} ({listing}); run python preprocessing.py"
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WorkError(f"{path}: cannot be read as JSON; run python preprocessing.py again") from None
    version = info.get("format_version") if isinstance(info, dict) else None
    if version != DATASET_FORMAT_VERSION:
        raise WorkError(
            f"{path}: format {version}, this code reads {DATASET_FORMAT_VERSION}; run python preprocessing.py again"
        )
    return info


def read_metadata(folder: Path) -> pd.DataFrame:
    """Read ``metadata.csv``: index ``id``; see :mod:`preprocessing` for the columns."""
    read_dataset_info(folder)
    path = folder / METADATA_FILE
    _check_columns(path, _read_header(path), ("id", "split", "patient_id"))
    frame = pd.read_csv(path, dtype={"id": str, "patient_id": str, "study_id": str, "series_id": str})
    return _indexed(path, frame)


def read_fold(folder: Path, dataset: str, fold: int) -> pd.DataFrame:
    """Read a fold: index ``id``, ``sample_type`` (train or valid), int8 columns :data:`LABELS`, patient and study.

    Raises UsageError, with what exists, for a missing dataset or fold; WorkError naming the file and what is wrong in
    it: a column, an id that stands twice or could leave the folder, a sample type, a label.
    """
    read_dataset_info(folder)
    path = fold_path(folder, dataset, fold)
    if not path.is_file():
        pattern = re.compile(rf"dataset_{re.escape(dataset)}_fold_(\d+)\.csv")
        found = sorted(int(match[1]) for file in folder.iterdir() if (match := pattern.fullmatch(file.name)))
        raise UsageError(
            f"--data_fold={fold}: {folder} has no such fold; there are {', '.join(map(str, found)) or 'none'}"
        )
    _check_columns(path, _read_header(path), ("id", "sample_type", *LABELS))
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    wrong = text.index[~text["sample_type"].isin(("train", "valid"))]
    if len(wrong):
        raise WorkError(
            f"{path}: row {wrong[0] + 2} has sample_type {text['sample_type'][wrong[0]]!r}, not train or valid"
        )
    for label in LABELS:
        values = _numbers(path, text[label], text["id"], label)
        bad = text.index[~np.isin(values, (0, 1))]
        if len(bad):
            raise WorkError(f"{path}: row {bad[0] + 2} has {label} {text[label][bad[0]]!r}, not 0 or 1")
        text[label] = values.astype(np.int8)
    return _indexed(path, text)


class RSNADataset(ImageDataset):
    """Images of a preprocessed dataset with their six labels."""

    def __init__(self, folder: Path, rows: pd.DataFrame, pipeline: Transform, image_size: int, seed: int) -> None:
        """``rows``: index ``id``, the columns :data:`LABELS` where known (of a fold or of the metadata)."""
        labelled = set(LABELS) <= set(rows.columns) and bool(rows[list(LABELS)].notna().all(axis=None))
        targets = rows[list(LABELS)].to_numpy(dtype=np.float32) if labelled else None
        form = read_dataset_info(folder)["image_form"]
        super().__init__(folder / IMAGE_FOLDER, rows.index.to_numpy(), targets, pipeline, image_size, seed, form)


def _first_folder(*candidates: Path) -> Path | None:
    return next((folder for folder in candidates if folder.is_dir()), None)


def _read_header(path: Path) -> list[str]:
    try:
        return list(pd.read_csv(path, nrows=0).columns)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise WorkError(f"{path}: cannot be read as CSV ({type(error).__name__})") from None


def _check_columns(path: Path, found: list[str], needed: tuple[str, ...]) -> None:
    for column in needed:
        if column not in found:
            raise WorkError(f"{path}: has no column {column!r}; it has {', '.join(found) or 'none'}")


def _read_text(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    _check_columns(path, _read_header(path), columns)
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, usecols=list(columns))
    except ValueError as error:
        raise WorkError(f"{path}: cannot be read as CSV ({type(error).__name__})") from None


def _read_long(path: Path) -> tuple[pd.DataFrame, int]:
    """Return the table of ``ID,Label`` rows and how many rows repeat another one exactly."""
    text = _read_text(path, ("ID", "Label"))
    if text.empty:
        raise WorkError(f"{path}: has no rows")
    ids, labels = _split_ids(path, text["ID"])
    values = _numbers(path, text["Label"], text["ID"], "Label")
    codes, names = pd.factorize(np.asarray(ids, dtype=object))
    cells = codes.astype(np.int64) * len(LABELS) + labels
    table = np.full(len(names) * len(LABELS), np.nan)
    table[cells] = values
    contradicting = np.flatnonzero(table[cells] != values)
    if len(contradicting):
        row = contradicting[0]
        raise WorkError(f"{path}: row {row + 2} contradicts another row of {text['ID'].iloc[row]}")
    empty = np.flatnonzero(np.isnan(table))
    if len(empty):
        code, label = divmod(int(empty[0]), len(LABELS))
        raise WorkError(f"{path}: image {names[code]} has no row for {LABELS[label]} ({len(empty)} rows are missing)")
    frame = pd.DataFrame(table.reshape(-1, len(LABELS)), columns=list(LABELS), index=pd.Index(names, name="id"))
    return frame, len(cells) - table.size


def _split_ids(path: Path, column: pd.Series) -> tuple[list[str], np.ndarray]:
    """Split ``ID_xxxxxxxxx_label`` at the last underscore: image ids, and the labels' places in :data:`LABELS`."""
    parts = [text.rpartition("_") for text in column]
    ids = [part[0] for part in parts]
    classes = [part[2] for part in parts]
    labels = pd.Index(LABELS).get_indexer(pd.Index(classes))
    wrong = np.flatnonzero(labels < 0)
    if len(wrong):
        row, known = wrong[0], ", ".join(LABELS)
        hint = nearest(classes[row], LABELS)
        raise WorkError(f"{path}: row {row + 2} has the unknown class {classes[row]!r} (known: {known}){hint}")
    for image_id in set(ids):
        check_image_id(image_id)
    return ids, labels


def _numbers(path: Path, column: pd.Series, ids: pd.Series, name: str) -> np.ndarray:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        row = wrong[0]
        what = "is empty" if not column.iloc[row].strip() else f"is {column.iloc[row]!r}, not a number"
        raise WorkError(f"{path}: row {row + 2} ({ids.iloc[row]}): {name} {what}")
    return values


def _check_unique(path: Path, ids: pd.Series) -> None:
    repeated = ids[ids.duplicated()]
    if len(repeated):
        raise WorkError(f"{path}: {len(repeated)} ids stand twice, such as {repeated.iloc[0]}")


def _check_probabilities(path: Path, table: pd.DataFrame) -> None:
    wrong = np.argwhere(~((table.to_numpy() >= 0) & (table.to_numpy() <= 1)))
    if len(wrong):
        row, column = wrong[0]
        value = table.to_numpy()[row, column]
        raise WorkError(f"{path}: image {table.index[row]}: {LABELS[column]} is {value:g}, not a probability in 0..1")


def _indexed(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    _check_unique(path, frame["id"])
    for image_id in frame["id"]:
        check_image_id(image_id)
    return frame.set_index("id")
