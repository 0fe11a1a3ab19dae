"""The RSNA 2019 task's data: labels, the competition's CSV forms, where its files lie, and the preprocessed dataset.

On disk a dataset is ``<input_folder>/datasets/<name>/``, as preprocessing.py writes it; everything that trains or
predicts reads it through this module.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.cli.console import tell
from common.datasets.context import describe_lacks, find_neighbours, slice_places
from common.datasets.image_files import SUFFIXES
from common.datasets.images import ImageDataset, Neighbours, Transform
from common.errors import UsageError, UserError, WorkError, nearest
from common.files import write_csv
from common.foreign import read_json
from common.preprocessing.groups import Identities, group_images, picture_keys
from common.preprocessing.series import NORMAL
from common.preprocessing.sources import SourceFile, Tree, open_tree
from common.spreadsheets import (
    TableForm,
    checked_numbers,
    first_row,
    plain_name,
    read_texts,
    table_form,
    to_numbers,
)
from config import HOLDOUT

logger = logging.getLogger(__name__)

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
ANY = LABELS.index("any")
KINDS = LABELS[:ANY]
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

SUBMISSION_COLUMNS = ["ID", "Label"]
LABEL_KEYS = ("path", "file", "id", "sopinstanceuid", "studyinstanceuid")  # in any case of letters
KEY_SPACES = re.compile(r"[ _-]")  # that may stand in the name of a key's column, as in Study Instance UID
TRUTH_VALUES = {"true": "1", "false": "0"}
IMAGE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
DATASET_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
TRUTH_FILE = "phantom_truth.csv"  # stands beside the CSVs of a phantom
COMPETITION_FOLDER = "rsna-intracranial-hemorrhage-detection"
DATASET_INFO = "dataset.json"
METADATA_FILE = "metadata.csv"
FAILED_FILE = "failed.csv"
SAMPLE_FILE = "sample_submission.csv"
JOURNAL = ".converted.csv"
PUBLIC_NAMES = "public"  # in place of a key's fingerprint: the pseudonyms are the competition's own
HASHED_AT_ONCE = 2**20
FORMAT_VERSION = 1
EXAMPLES = 5
IDENTITY_COLUMNS = ("patient_id", "study_id", "group_id")  # of metadata and folds: whose an image is
PICTURE_COLUMNS = {"picture_hash": str, "hu_min": np.int64, "hu_max": np.int64, "solid": np.float64}


# --- ids and labels ---------------------------------------------------------------------------------------------------


def check_image_id(image_id: str) -> None:
    """Raise WorkError unless ``image_id`` is a plain name: an id becomes a file name and must not leave its folder."""
    if not IMAGE_ID.fullmatch(image_id):
        raise WorkError(f"image id {image_id!r} is not allowed: use letters, digits, '_', '-' and '.', not '.' first")


def list_some(names: Iterable[str]) -> str:
    """Return the first few of ``names`` as text, for a message about many."""
    names = list(names)
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def read_competition_labels(path: SourceFile) -> pd.DataFrame:
    """Read a train CSV (``ID_xxxxxxxxx_epidural,0``): index ``id`` in the file's order, int8 columns :data:`LABELS`.

    Identical repeated rows count once, with a warning. A file without any row for ``any`` gets it from the others.
    Raises UsageError where the file can't be read, WorkError where it has no such columns and, naming the row, for an
    unknown label, a value that is not 0 or 1, an id that is not allowed, rows that contradict each other, an ``any`` of
    0 beside a kind of 1, and an image without all labels.
    """
    frame = _read_long(path)
    wrong = ~np.isin(frame.numbers, (0, 1))
    if wrong.any():
        _, row = first_row(wrong, frame.rows)
        raise WorkError(f"{path}: row {row}: the label {frame.numbers[wrong][0]:g} is not 0 or 1")
    has_any = bool((frame.label == ANY).any())
    table = _to_wide(path, frame, repeats_allowed=True, labels=LABELS if has_any else KINDS)
    if not has_any:
        return with_any(path, table).astype(np.int8)
    check_any(path, table, lambda *cell: first_row((frame.image == cell[0]) & (frame.label == cell[1]), frame.rows)[1])
    return table.astype(np.int8)


def with_any(path: SourceFile, table: pd.DataFrame) -> pd.DataFrame:
    """Return labels of :data:`KINDS` with the column ``any``: 1 where a kind is; say that it was missing."""
    tell(f"{path}: has no label any: it is taken as 1 where one of the kinds is, and as 0 elsewhere")
    return table.assign(any=table[list(KINDS)].max(axis=1))[list(LABELS)]


def check_any(path: SourceFile, table: pd.DataFrame, row_of: Callable[[int, int], int]) -> None:
    """Raise WorkError where ``any`` is 0 and a kind is 1; ``row_of``: of an image's and a label's place the file's row.

    The other way round is none: a bleeding of which nobody noted the kind.
    """
    kinds = table[list(KINDS)].to_numpy() == 1
    wrong = (table["any"].to_numpy() == 0) & kinds.any(axis=1)
    if wrong.any():
        image = int(np.argmax(wrong))
        kind = int(np.argmax(kinds[image]))
        row, other = row_of(image, ANY), row_of(image, kind)
        where = "in the same row" if row == other else f"in row {other}"
        raise WorkError(
            f"{path}: row {row}: any is 0, and {KINDS[kind]} {where} is 1 ({int(wrong.sum())} such images or studies); "
            "mend them, or leave out any altogether: it is then taken from the kinds"
        )


def read_submission(path: SourceFile) -> pd.DataFrame:
    """Read a submission (``ID,Label``, probabilities): index ``id`` in the file's order, float64 :data:`LABELS`.

    Raises the errors of :func:`read_competition_labels`, for values outside 0..1 and for any repeated row.
    """
    frame = _read_long(path)
    wrong = (frame.numbers < 0) | (frame.numbers > 1)
    if wrong.any():
        _, row = first_row(wrong, frame.rows)
        raise WorkError(f"{path}: row {row}: {frame.numbers[wrong][0]:g} is no probability (0 to 1)")
    return _to_wide(path, frame, repeats_allowed=False)


def read_submission_texts(path: SourceFile) -> pd.DataFrame:
    """Read the columns ID and Label as they stand there; the index is the row's number in the file.

    Raises UsageError where the file can't be read, WorkError where it lacks a column.
    """
    return read_texts(path, SUBMISSION_COLUMNS)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read probabilities in the competition's form or as ``id`` and a column for each label; as read_submission."""
    form = table_form(path)
    if form.has(SUBMISSION_COLUMNS):
        return read_submission(path)
    if not form.has(["id"]):
        raise WorkError(f"{path}: has neither the columns ID,Label nor id,{','.join(LABELS)}")
    return _read_wide(path).astype(np.float64)


def write_submission(frame: pd.DataFrame, sample_path: Path, path: Path) -> None:
    """Write ``frame`` (index ``id``, columns :data:`LABELS`) with exactly the rows, and their order, of the sample.

    Raises WorkError where ``frame`` lacks an image of the sample or holds anything but numbers in 0..1.
    """
    sample = _read_long(sample_path)
    ids = pd.Index(sample.ids)
    missing = ids.difference(frame.index)
    if len(missing):
        raise WorkError(f"{path}: {len(missing)} images of {sample_path} have no prediction: {list_some(missing)}")
    place = frame.index.get_indexer(ids)
    values = frame[list(LABELS)].to_numpy(dtype=np.float64)
    outside = ~((values >= 0) & (values <= 1)).all(axis=1)  # also catches NaN
    if outside.any():
        raise WorkError(f"{path}: predictions outside 0..1 or not finite for {list_some(frame.index[outside])}")
    written = pd.DataFrame({"ID": sample.names, "Label": values[place[sample.image], sample.label]})
    write_csv(path, written)


def check_submission(path: Path, sample_path: Path) -> None:
    """Read a submission again and raise WorkError unless it has every row of the sample once, and nothing else."""
    submission, sample = read_submission(path), read_submission(sample_path)
    missing = sample.index.difference(submission.index)
    extra = submission.index.difference(sample.index)
    if len(missing):
        raise WorkError(f"{path}: {len(missing)} images of {sample_path} are missing: {list_some(missing)}")
    if len(extra):
        raise WorkError(f"{path}: {len(extra)} images are not in {sample_path}: {list_some(extra)}")


@dataclass(frozen=True)
class _LongRows:
    """Rows of a file ``ID,Label``: ``ids`` are the images, ``image`` and ``label`` say which each row belongs to."""

    names: np.ndarray
    ids: np.ndarray
    image: np.ndarray
    label: np.ndarray
    numbers: np.ndarray
    rows: np.ndarray  # number in the file; the header is row 1


def _read_long(path: SourceFile) -> _LongRows:
    frame = read_texts(path, SUBMISSION_COLUMNS)
    if frame.empty:
        raise WorkError(f"{path}: has no rows")
    names = frame["ID"].to_numpy(dtype=object)
    # For 4.5 million rows this takes 1 s each; pandas' own .str.rpartition takes 5 s, and a list of parts 0.6 GB.
    image, ids = pd.factorize(np.fromiter((name.rpartition("_")[0] for name in names), object, len(names)))
    label, classes = pd.factorize(np.fromiter((name.rpartition("_")[2] for name in names), object, len(names)))
    place, ids = pd.factorize(np.fromiter((name.strip() for name in ids), object, len(ids)))
    image = place[image]
    known = pd.Index(LABELS).get_indexer([plain_name(name) for name in classes])
    if (known < 0).any():
        unknown = int(np.argmax(known < 0))
        _, row = first_row(label == unknown, frame.index)
        raise WorkError(
            f"{path}: row {row}: {names[np.argmax(label == unknown)]!r} does not end in one of the labels "
            f"{', '.join(LABELS)}{nearest(classes[unknown], LABELS)}"
        )
    _check_ids(path, ids, image, frame.index)
    return _LongRows(names, ids, image, known[label], checked_numbers(path, frame["Label"]), frame.index.to_numpy())


def _check_ids(path: SourceFile, ids: Sequence[str], image: np.ndarray, rows: Sequence[int]) -> None:
    wrong = np.array([IMAGE_ID.fullmatch(image_id) is None for image_id in ids], dtype=bool)
    if wrong.any():
        place, row = first_row(wrong[image], rows)
        try:
            check_image_id(ids[image[place]])
        except WorkError as error:
            raise WorkError(f"{path}: row {row}: {error}") from None


def _to_wide(
    path: SourceFile, frame: _LongRows, *, repeats_allowed: bool, labels: Sequence[str] = LABELS
) -> pd.DataFrame:
    """Turn rows into a table with a row for each image, float64; every cell must be given, and only once."""
    shape = (len(frame.ids), len(labels))
    cell = frame.image * len(labels) + frame.label
    values = np.empty(shape[0] * shape[1])
    values[cell[::-1]] = frame.numbers[::-1]  # the first row of a cell wins, the others are compared with it
    counts = np.bincount(cell, minlength=len(values))
    differs = values[cell] != frame.numbers
    if differs.any():
        place, row = first_row(differs, frame.rows)
        first = frame.rows[np.argmax(cell == cell[place])]
        raise WorkError(f"{path}: row {row} contradicts row {first}: {frame.names[place]} has two values")
    repeated = np.flatnonzero(counts.reshape(shape).max(axis=1) > 1)
    if len(repeated) and not repeats_allowed:
        raise WorkError(f"{path}: {len(repeated)} images stand there twice: {list_some(frame.ids[repeated])}")
    if len(repeated):
        logger.warning(
            "%s: %d images have repeated rows, all identical, which count once: %s",
            path,
            len(repeated),
            list_some(frame.ids[repeated]),
        )
    if (counts == 0).any():
        image, label = divmod(int(np.argmax(counts == 0)), len(labels))
        first = frame.rows[np.argmax(frame.image == image)]
        raise WorkError(f"{path}: row {first}: image {frame.ids[image]} has no row for the label {labels[label]}")
    return pd.DataFrame(values.reshape(shape), index=pd.Index(frame.ids, name="id"), columns=list(labels))


def _read_wide(path: Path) -> pd.DataFrame:
    """Read ``id`` and a column for each label, probabilities or 0 and 1; index ``id``, float64."""
    texts = read_texts(path, ["id", *LABELS])
    texts = texts.assign(id=texts["id"].str.strip())
    image, ids = pd.factorize(texts["id"].to_numpy(dtype=object))
    _check_ids(path, ids, image, texts.index)
    repeated = texts["id"].duplicated().to_numpy()
    if repeated.any():
        place, row = first_row(repeated, texts.index)
        raise WorkError(f"{path}: row {row}: image {texts['id'].iloc[place]} stands there twice")
    values = np.column_stack([checked_numbers(path, texts[name]) for name in LABELS])
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        image, label = divmod(int(np.argmax(wrong)), len(LABELS))
        raise WorkError(
            f"{path}: row {texts.index[image]}: {LABELS[label]} {values[image, label]:g} is no probability (0 to 1)"
        )
    return pd.DataFrame(values, index=pd.Index(ids, name="id"), columns=list(LABELS))


# --- labels of other people's data ------------------------------------------------------------------------------------


def read_label_file(path: Path) -> pd.DataFrame:
    """Read labels in the wide form (a key and a column for each label) or the competition's (``<key>_<label>,0``).

    A key is a file's path in the source, its SOPInstanceUID or its StudyInstanceUID; in the wide form its column is one
    of :data:`LABEL_KEYS`. Returns index ``key``, int8 columns :data:`LABELS`, and ``row``, the first row that names
    the key (the header is row 1). Messages name rows and never a key, which may identify a patient.

    Raises UsageError where the file can't be read, WorkError for columns that are missing, a label that is not 0 or 1
    or not given, an unknown class, and rows that contradict each other.
    """
    form = table_form(path)
    if form.has(SUBMISSION_COLUMNS):
        texts = read_texts(path, SUBMISSION_COLUMNS)
        parts = [name.rpartition("_") for name in texts["ID"]]
        rows = pd.DataFrame(
            {
                "key": [part[0] for part in parts],
                "label": [plain_name(part[2]) for part in parts],
                "value": texts["Label"],
            }
        )
        unknown = ~rows["label"].isin(LABELS).to_numpy()
        if unknown.any():
            raise WorkError(f"{path}: row {rows.index[unknown][0]}: ID does not end in one of {', '.join(LABELS)}")
        labels = LABELS if (rows["label"] == "any").any() else KINDS
    else:
        keys = [name for name in form.header if KEY_SPACES.sub("", plain_name(name)) in LABEL_KEYS]
        if len(keys) != 1:
            raise WorkError(
                f"{path}: has {len(keys) or 'no'} key columns {', '.join(keys)}".rstrip()
                + f"; expected exactly one of {', '.join(LABEL_KEYS)} (or the competition's ID,Label)"
            )
        labels = LABELS if form.has(["any"]) else KINDS
        check_label_columns(path, form)
        texts = read_texts(path, [keys[0], *labels]).rename(columns={keys[0]: "key"})
        rows = texts.melt(id_vars="key", value_vars=list(labels), var_name="label", ignore_index=False)
    rows = rows.rename_axis("row").reset_index().sort_values("row", kind="stable", ignore_index=True)
    rows = rows.assign(key=rows["key"].str.strip().str.replace("\\", "/").str.removeprefix("./"))
    return _label_table(path, rows, labels)


def check_label_columns(path: SourceFile, form: TableForm) -> None:
    """Raise WorkError where a label's column is missing, with the one that may be it under the field's short name."""
    missing = [name for name in KINDS if not form.has([name])]
    short = {LABELS_IN_SHORT[name]: name for name in missing}
    found = [f"{name} may be {short[word]}" for name in form.header for word in re.split(r"\W+", name.upper())
             if word in short]  # fmt: skip
    if found:
        raise WorkError(
            f"{path}: has no column {', '.join(missing)}; {list_some(found)}: name each label's column as here, and "
            "give one value for each label, not one for each reader"
        )


def _label_table(path: Path, rows: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Turn rows (row, key, label, value as text) into a row for each key, checked; ``labels``: those that are given."""
    texts = rows["value"].str.strip()
    numbers = pd.Series(to_numbers(texts.str.lower().replace(TRUTH_VALUES)))
    for wrong, fault in ((~numbers.isin((0, 1)), "is not 0 or 1"), (rows["key"] == "", "has no key")):
        if wrong.any():
            first = rows[wrong].iloc[0]
            raise WorkError(f"{path}: row {first['row']}: {first['label']} {fault}")
    rows = rows.assign(value=numbers.astype(np.int8))
    cells = rows.groupby(["key", "label"], sort=False)
    differs = rows["value"] != cells["value"].transform("first")
    if differs.any():
        first = rows[differs].iloc[0]
        before = cells["row"].transform("first")[differs].iloc[0]
        raise WorkError(f"{path}: row {first['row']} contradicts row {before}: {first['label']} has two values")
    first = rows.drop_duplicates("key").set_index("key")["row"]
    given = {label: rows[rows["label"] == label].drop_duplicates("key").set_index("key") for label in labels}
    table = pd.DataFrame({label: part["value"] for label, part in given.items()}).reindex(first.index)
    for label in labels:
        if table[label].isna().any():
            row = first[table[label].isna()].iloc[0]
            raise WorkError(f"{path}: row {row}: there is no value for the label {label} of the same key")
    if table.empty:
        raise WorkError(f"{path}: has no rows")
    if "any" in given:
        check_any(path, table, lambda key, label: int(given[LABELS[label]]["row"][table.index[key]]))
    else:
        table = with_any(path, table)
    return table.astype(np.int8).assign(row=first)


# --- the competition's folder -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompetitionSource:
    """Where the competition's files lie in ``tree``: folders by their names there, CSVs as files to open.

    ``test_images`` and ``sample_submission`` are None where either is missing; ``phantom``: synthetic files.
    """

    tree: Tree
    stage: int
    train_images: str
    train_csv: SourceFile
    test_images: str | None
    sample_submission: SourceFile | None
    phantom: bool


def find_competition(path: Path) -> CompetitionSource | None:
    """Find the competition's files in a folder or zip archive, by either naming, also in :data:`COMPETITION_FOLDER`.

    In a folder that may be a folder or the archive ``<COMPETITION_FOLDER>.zip``. Of several stages the highest that has
    both images and CSV. None where there are no training images with labels; UsageError for a damaged archive.
    """
    places = [(path, "")]
    if path.is_dir():
        places += [(path / COMPETITION_FOLDER, ""), (path / f"{COMPETITION_FOLDER}.zip", COMPETITION_FOLDER)]
    elif path.is_file():
        places += [(path, COMPETITION_FOLDER)]
    trees: dict[Path, Tree | None] = {}
    for place, under in places:
        tree = trees[place] = trees[place] if place in trees else open_tree(place)
        for prefix in dict.fromkeys(("", f"{under}/" if under else "")):
            source = None if tree is None else _find_stages(tree, prefix)
            if source is not None:
                return source
    return None


def list_competition(source: CompetitionSource) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images' files (path, file_id, split, bytes, mtime_ns and what the tree needs), sorted by split and id.

    And those that are refused (path, file_id, reason, message): for a name that is no id, or for one of a training
    image.
    """
    tables, refused = [], []
    for split, under in (("train", source.train_images), ("test", source.test_images)):
        for found, table in (
            zip((tables, refused), source.tree.list(under, recursive=False), strict=True) if under else ()
        ):
            ids = [path.rpartition("/")[2] for path in table["path"]]
            named = table.assign(file_id=[name.removesuffix(".dcm") for name in ids], split=split)
            found.append(named[[name.endswith(".dcm") for name in ids]])
    files = pd.concat(tables, ignore_index=True)
    named = np.array([IMAGE_ID.fullmatch(name) is not None for name in files["file_id"]], dtype=bool)
    twice = files["file_id"].duplicated().to_numpy() & named
    nameless = "the file's name is no id: letters, digits, '_', '-' and '.' only"
    refused += [
        files[~named].assign(reason="name", message=nameless),
        files[twice].assign(reason="duplicate", message="a training image has the same id"),
    ]
    columns = ["path", "file_id", "reason", "message"]
    return files[named & ~twice].reset_index(drop=True), pd.concat(refused, ignore_index=True)[columns]


def _find_stages(tree: Tree, prefix: str) -> CompetitionSource | None:
    train = _highest_stage(tree, prefix, "train", "train.csv")
    if train is None:
        return None
    stage, train_images, train_csv = train
    test_images, sample = None, None
    test = _highest_stage(tree, prefix, "test", "sample_submission.csv")
    if test is not None and test[0] >= stage:  # the test images of stage 1 are training images of stage 2
        test_images, sample = test[1:]
    phantom = tree.find(f"{prefix}{TRUTH_FILE}") is not None
    return CompetitionSource(tree, stage, train_images, train_csv, test_images, sample, phantom)


def _highest_stage(tree: Tree, prefix: str, split: str, csv: str) -> tuple[int, str, SourceFile] | None:
    for stage in (2, 1):
        table = tree.find(f"{prefix}stage_{stage}_{csv}")
        if table is None:
            continue
        for images in (f"{prefix}stage_{stage}_{split}_images", f"{prefix}stage_{stage}_{split}"):
            if tree.has_files(images, ".dcm"):
                return stage, images, table
    return None


# --- a preprocessed dataset -------------------------------------------------------------------------------------------


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
    """Read a dataset's ``dataset.json``; ``image_form`` there is ``hu`` or ``window``, ``format`` npy or blosc2.

    Raises UsageError where the dataset doesn't exist (naming those that do) or is not complete, WorkError for a damaged
    file or one of a newer version.
    """
    path = folder / DATASET_INFO
    try:
        info = read_json(path)
        version = info["format_version"]
        info.setdefault("format", "npy")  # in the first datasets there was no other
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
    """Return what tells whose pseudonyms a dataset has: those of two datasets can be compared where it is the same.

    The fingerprint of the key that made them, :data:`PUBLIC_NAMES` where they are the competition's (or a phantom's)
    own, and "" where nobody knows. Errors as :func:`read_dataset_info`.
    """
    info = read_dataset_info(folder)
    if "pseudonyms" in info:
        return str(info["pseudonyms"])
    if info.get("source", {}).get("kind") in ("competition", "phantom"):
        return PUBLIC_NAMES
    try:  # a dataset of before dataset.json said so
        with (folder / JOURNAL).open(encoding="utf-8", errors="replace") as file:
            return str(json.loads(file.readline(HASHED_AT_ONCE))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


IMAGE_OPTIONS = ("pre_size", "pre_window", "pre_type", "pre_crop")  # of preprocessing, that the pictures depend on


def image_settings(info: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing options that a dataset's pictures depend on, in plain types; ``info``: dataset.json."""
    return {name: value for name, value in info.get("options", {}).items() if name in IMAGE_OPTIONS}


def is_labelled(info: dict[str, Any]) -> bool:
    """Whether images of a dataset have labels; ``info`` as :func:`read_dataset_info` returns it."""
    return info.get("labelled", 1) > 0


def content_hash(folder: Path, options: dict[str, Any]) -> str:
    """Return a hash of what training sees: ``options`` of dataset.json, folds, and metadata with every image's hash."""
    digest = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=16)
    for path in [folder / METADATA_FILE, *sorted(folder.glob("dataset_*.csv"))]:
        with path.open("rb") as file:
            while block := file.read(HASHED_AT_ONCE):  # the metadata of a million images are 340 MB
                digest.update(block)
    return digest.hexdigest()


def read_metadata(folder: Path, *, described: bool = False) -> pd.DataFrame:
    """Read a dataset's ``metadata.csv``: index ``id``, a row for each image.

    Columns: split (train or test), patient_id, study_id, series_id, group_id (see :func:`known_groups`), slice_index,
    position_mm, row_spacing_mm, column_spacing_mm, rows, columns, mended (names joined by ``;``), and :data:`LABELS`,
    NaN where unknown. A dataset of an earlier version has no group_id: it follows from patients, studies and pictures.

    ``described`` adds thickness_mm; of the series slice_spacing_mm and normal_x, normal_y, normal_z, and in geometry
    what is unusual about the slice's place (see :func:`common.preprocessing.series.place_slices`); of the picture as
    scanned pixel_form (BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept), hu_min, hu_max, hu_mean, solid
    (share of pixels above -500 HU) and picture_hash; the box that was kept of it: crop_top, crop_left, crop_rows,
    crop_columns; and image_hash of the stored image.

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
    table = _read_table(folder / METADATA_FILE, types, PICTURE_COLUMNS | {"group_id": str})
    if "group_id" not in table:
        table = table.assign(group_id=group_images(identities_of(table)))
    table = table[[name for name in table.columns if name in types or name == "group_id"]]
    return table if labels else table.assign(**dict.fromkeys(LABELS, np.nan))


def read_fold(folder: Path, dataset: str, fold: int | str) -> pd.DataFrame:
    """Read a fold: index ``id``, sample_type (train or valid), int8 :data:`LABELS`, :data:`IDENTITY_COLUMNS`.

    Of the fold ``HOLDOUT`` all images of the folds are for training, and those held out of them for validation.

    Raises UsageError, naming what exists, where there is no such dataset or fold or no labels, WorkError for a damaged
    file.
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


def fold_numbers(folder: Path, dataset: str) -> tuple[int, ...]:
    """Return the numbers of the folds that a dataset has, in order."""
    pattern = re.compile(rf"dataset_{re.escape(dataset)}_fold_(\d+)\.csv")
    matches = [pattern.fullmatch(file.name) for file in folder.iterdir()]
    return tuple(sorted(int(match[1]) for match in matches if match))


def rows_hash(*parts: pd.DataFrame) -> str:
    """Return a hash of the images (index) and labels of several tables, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in parts:
        digest.update("\n".join(rows.index).encode() + b"\0")
        digest.update(np.ascontiguousarray(rows[list(LABELS)].to_numpy(dtype=np.float32)).tobytes())
    return digest.hexdigest()


def fold_hash(rows: pd.DataFrame) -> str:
    """Return the hash of a fold as read by :func:`read_fold`: that of the runs which trained on it."""
    return rows_hash(*(rows[rows["sample_type"] == kind] for kind in ("train", "valid")))


def known_groups(rows: pd.DataFrame) -> np.ndarray:
    """Return the group of each image (N,), text: the unit that folds keep whole, intervals draw and tests count.

    A group is a patient (of images without PatientID a study, else the image), joined with those who share a study or
    a picture that is equal to the last pixel. ``rows``: index ``id``, as :func:`read_fold` and :func:`read_metadata`
    return them; of a table without group_id patient_id and study_id decide, as far as it has them.
    """
    groups = rows["group_id"] if "group_id" in rows else group_images(identities_of(rows))
    return np.asarray(groups).astype(str)


def read_identities(folder: Path) -> pd.DataFrame:
    """Return whose each image of a dataset is: index ``id``, :data:`IDENTITY_COLUMNS`, and ``picture``.

    ``picture`` is the hash of the picture as scanned, "" for one that links nobody. Where each study stands for a
    patient (--pre_group=study) there are no patients. Errors as :func:`read_dataset_info`.
    """
    group = read_dataset_info(folder).get("options", {}).get("pre_group", "patient")
    types = dict.fromkeys(("id", "patient_id", "study_id"), str)
    rows = _read_table(folder / METADATA_FILE, types, PICTURE_COLUMNS | {"group_id": str})
    images = identities_of(rows, group)
    groups = rows["group_id"] if "group_id" in rows else group_images(images)
    found = {"patient_id": images.patients, "study_id": images.studies, "group_id": groups, "picture": images.pictures}
    return pd.DataFrame(found, index=rows.index)


def identities_of(rows: pd.DataFrame, group: str = "patient") -> Identities:
    """Return whose the images of a table (index: their ids) are, from what it has of the metadata's columns.

    ``group``: as --pre_group; ``study`` leaves the patients out.
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
    """Read the images held out of all folds, as :func:`read_fold`; sample_type is ``holdout``."""
    read_dataset_info(folder)
    path = holdout_path(folder, dataset)
    if not path.is_file():
        raise UsageError(
            f"{folder}: no images are held out; python preprocessing.py --pre_holdout=0.1 makes such a split"
        )
    return _read_fold_table(path, ("holdout",))


def has_holdout(info: Mapping[str, Any]) -> bool:
    """Whether a dataset, by its dataset.json, keeps images out of all its folds (--pre_holdout)."""
    options = info.get("options", {})
    return int(options.get("pre_folds", 1)) > 1 and float(options.get("pre_holdout", 0)) > 0


def new_images(folder: Path) -> pd.DataFrame:
    """Return the metadata (index ``id``) of images that no fold has: the test split's and those of --pre_holdout."""
    metadata = read_metadata(folder)
    kept_out = read_holdout(folder, folder.name).index if has_holdout(read_dataset_info(folder)) else []
    return metadata[(metadata["split"] == "test") | metadata.index.isin(kept_out)]


def _read_fold_table(path: Path, sample_types: Sequence[str]) -> pd.DataFrame:
    texts = dict.fromkeys(("id", "sample_type", "patient_id", "study_id"), str)
    rows = _read_table(path, texts | dict.fromkeys(LABELS, np.int8), {"group_id": str})
    if "group_id" not in rows:
        rows = rows.assign(group_id=_groups_of_metadata(path.parent, rows))
    for columns, allowed in ((["sample_type"], sample_types), (list(LABELS), (0, 1))):
        wrong = ~rows[columns].isin(allowed).to_numpy()
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise WorkError(
                f"{path}: image {rows.index[row]}: {columns[column]} {rows[columns].iloc[row, column]} is not "
                f"{' or '.join(map(str, allowed))}; run python preprocessing.py again"
            )
    _warn_of_split_groups(path, rows)
    return rows


def _groups_of_metadata(folder: Path, rows: pd.DataFrame) -> np.ndarray:
    """Return the groups of a fold that doesn't name them: by its own patients and studies, and by the metadata's."""
    images = identities_of(rows)
    if not (folder / METADATA_FILE).is_file():
        return group_images(images)
    groups = read_metadata(folder)["group_id"].reindex(rows.index).fillna("").to_numpy(dtype=object)
    return group_images(replace(images, pictures=groups))


def _warn_of_split_groups(path: Path, rows: pd.DataFrame) -> None:
    """Warn where a fold that was edited has a group on both sides: its validation then promises too much."""
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


def _read_table(path: Path, types: dict[str, Any], optional: dict[str, Any] | None = None) -> pd.DataFrame:
    """Read a CSV of this project with exactly typed columns; WorkError where it isn't one.

    Of the ``optional`` columns those are read that it has.
    """
    known = (optional or {}) | types
    numbers = [name for name, kind in known.items() if kind is not str]
    try:
        # Text stays as it is, also "NA" or nothing; an empty number is NaN. All columns are read: where only some are
        # asked for, pandas overlooks a row with too many fields.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=known,
                index_col=False,
                keep_default_na=False,
                na_values={name: [""] for name in numbers},
            )
        table = table[[*types, *(name for name in known if name in table and name not in types)]]
    except OSError as error:
        raise WorkError(f"{path}: cannot be read ({error.strerror}); run python preprocessing.py again") from None
    except (ValueError, KeyError, OverflowError, pd.errors.ParserWarning):
        raise WorkError(f"{_table_fault(path, types)}; run python preprocessing.py again") from None
    unique, ids = pd.factorize(table["id"])
    _check_ids(path, ids, unique, table.index + 2)
    if len(ids) < len(table):
        repeated = table["id"].duplicated().to_numpy()
        raise WorkError(f"{path}: image {table['id'][repeated].iloc[0]} stands there twice")
    return table.set_index("id")


def _table_fault(path: Path, types: dict[str, Any]) -> str:
    """Say which column, and row, of a CSV that is not of these types is to blame."""
    try:
        read_texts(path, list(types))
        for name, kind in types.items():
            if kind is not str:
                texts = read_texts(path, ["id", name])
                given = texts[texts[name] != ""] if kind is np.float64 else texts
                checked_numbers(path, given[name])
    except UserError as error:
        return str(error)
    return f"{path}: damaged"


def read_neighbours(folder: Path, ids: pd.Index, context: int) -> Neighbours:
    """Return the slices around images of a dataset, ``context`` on each side.

    They are found by position along the series among all images of the dataset, also those of no fold: a series is of
    one patient. Raises UsageError where neighbours don't show the same part of the head.
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


@lru_cache(maxsize=1)  # the images of several parts of one dataset: reading a million rows takes seconds
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
        """``rows``: of a fold or of the metadata: index ``id``, columns :data:`LABELS` where the labels are known.

        ``context``: neighbouring slices on each side that stand beside each image.
        """
        labelled = set(LABELS) <= set(rows.columns) and bool(rows[list(LABELS)].notna().all(axis=None))
        targets = rows[list(LABELS)].to_numpy(dtype=np.float32) if labelled else None
        info = read_dataset_info(folder)
        form, suffix = info["image_form"], SUFFIXES[info["format"]]
        around = read_neighbours(folder, rows.index, context) if context else None
        super().__init__(
            folder / "images", rows.index.to_numpy(), targets, pipeline, image_size, seed, form, suffix, around
        )
