"""CSV forms: the competition's labels and submissions, predictions, and label tables from others."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.cli.console import tell
from common.datasets.csv_tables import check_ids
from common.errors import WorkError, list_some, nearest
from common.files import write_csv
from common.spreadsheets import (
    TableFile,
    TableForm,
    checked_numbers,
    first_row,
    plain_name,
    read_texts,
    table_form,
    to_numbers,
)
from rsna_dataset import ANY, KINDS, LABELS, LABELS_IN_SHORT, whole_labels

logger = logging.getLogger(__name__)

SUBMISSION_COLUMNS = ["ID", "Label"]
LABEL_KEYS = ("path", "file", "id", "sopinstanceuid", "studyinstanceuid")  # names of columns, in lower case
KEY_SPACES = re.compile(r"[ _-]")  # that such a name may hold, as in Study Instance UID
TRUTH_VALUES = {"true": "1", "false": "0"}


def read_competition_labels(path: TableFile) -> pd.DataFrame:
    """Read a train CSV (``ID_xxxxxxxxx_epidural,0``): index ``id`` in the file's order, int8 columns :data:`LABELS`.

    Identical repeated rows count once, with a warning. Without rows for ``any``, it follows from the other labels.

    Raises UsageError if the file can't be read, and WorkError, naming the row, for

    - missing columns, an unknown label, an id that is no plain name, a value that is not 0 or 1
    - rows that contradict each other, or an ``any`` of 0 beside a kind of 1
    - an image without all labels.
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


def with_any(path: TableFile, table: pd.DataFrame) -> pd.DataFrame:
    """Add the missing column ``any`` to labels of :data:`KINDS`: 1 if a kind is 1, 0 if all are 0. Tell the user."""
    tell(f"{path}: has no label any: it is taken as 1 where one of the kinds is, and as 0 elsewhere")
    kinds = table[list(KINDS)]
    highest = kinds.max(axis=1)
    return table.assign(any=highest.mask(kinds.isna().any(axis=1) & (highest != 1)))[list(LABELS)]


def check_any(path: TableFile, table: pd.DataFrame, row_of: Callable[[int, int], int]) -> None:
    """Raise WorkError if ``any`` is 0 and a kind is 1. ``row_of(image, label)`` is the row of a cell in the file.

    ``any`` may be 1 without a kind: the kind of that bleeding was not noted.
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


def read_submission(path: TableFile) -> pd.DataFrame:
    """Read a submission (``ID,Label``, probabilities): index ``id`` in the file's order, float64 :data:`LABELS`.

    Raises the errors of :func:`read_competition_labels`, and WorkError for any repeated row and values outside 0..1.
    """
    frame = _read_long(path)
    wrong = (frame.numbers < 0) | (frame.numbers > 1)
    if wrong.any():
        _, row = first_row(wrong, frame.rows)
        raise WorkError(f"{path}: row {row}: {frame.numbers[wrong][0]:g} is no probability (0 to 1)")
    return _to_wide(path, frame, repeats_allowed=False)


def read_submission_texts(path: TableFile) -> pd.DataFrame:
    """Read the columns ID and Label as texts; errors and index (the row's number in the file) as :func:`read_texts`."""
    return read_texts(path, SUBMISSION_COLUMNS)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read probabilities as :func:`read_submission`, from the competition's form or ``id`` with a column per label."""
    form = table_form(path)
    if form.has(SUBMISSION_COLUMNS):
        return read_submission(path)
    if not form.has(["id"]):
        raise WorkError(f"{path}: has neither the columns ID,Label nor id,{','.join(LABELS)}")
    return _read_wide(path).astype(np.float64)


def write_submission(frame: pd.DataFrame, sample_path: Path, path: Path) -> None:
    """Write ``frame`` (index ``id``, columns :data:`LABELS`) with the rows of the sample submission, in its order.

    Raises WorkError if ``frame`` lacks an image of the sample or holds a value outside 0..1.
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
    """Raise WorkError unless a submission has each row of the sample submission once, and nothing else."""
    submission, sample = read_submission(path), read_submission(sample_path)
    missing = sample.index.difference(submission.index)
    extra = submission.index.difference(sample.index)
    if len(missing):
        raise WorkError(f"{path}: {len(missing)} images of {sample_path} are missing: {list_some(missing)}")
    if len(extra):
        raise WorkError(f"{path}: {len(extra)} images are not in {sample_path}: {list_some(extra)}")


@dataclass(frozen=True)
class _LongRows:
    """The N rows of a file ``ID,Label``."""

    names: np.ndarray  # (N,) ID as written
    ids: np.ndarray  # the images' ids
    image: np.ndarray  # (N,) place in ids
    label: np.ndarray  # (N,) place in LABELS
    numbers: np.ndarray  # (N,)
    rows: np.ndarray  # (N,) number in the file; the header is row 1


def _read_long(path: TableFile) -> _LongRows:
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
    check_ids(path, ids, image, frame.index)
    return _LongRows(names, ids, image, known[label], checked_numbers(path, frame["Label"]), frame.index.to_numpy())


def _to_wide(
    path: TableFile, frame: _LongRows, *, repeats_allowed: bool, labels: Sequence[str] = LABELS
) -> pd.DataFrame:
    """Return a table with a row for each image, float64; WorkError unless every cell is given once."""
    shape = (len(frame.ids), len(labels))
    cell = frame.image * len(labels) + frame.label
    values = np.empty(shape[0] * shape[1])
    values[cell[::-1]] = frame.numbers[::-1]  # the first row of a cell wins; the others are compared below
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
    """Read ``id`` and a column for each label with values in 0..1; index ``id``, float64."""
    texts = read_texts(path, ["id", *LABELS])
    texts = texts.assign(id=texts["id"].str.strip())
    image, ids = pd.factorize(texts["id"].to_numpy(dtype=object))
    check_ids(path, ids, image, texts.index)
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


def read_label_file(path: Path) -> pd.DataFrame:
    """Read labels in the wide form (a key and a column for each label) or the competition's (``<key>_<label>,0``).

    A key is a file's path in the source, its SOPInstanceUID or its StudyInstanceUID. In the wide form its column is one
    of :data:`LABEL_KEYS`, and an empty cell is a missing label. Returns index ``key``, columns :data:`LABELS` (int8, or
    float64 with NaN where labels are missing), and ``row``, the first row with the key (the header is row 1). Messages
    name rows, never keys, which may identify patients.

    Raises UsageError if the file can't be read, WorkError for missing columns, an unknown label, a value that is not 0
    or 1, a value that is missing in the competition's form, and rows that contradict each other.
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
    return _label_table(path, rows, labels, gaps=not form.has(SUBMISSION_COLUMNS))


def check_label_columns(path: TableFile, form: TableForm) -> None:
    """Raise WorkError if a label is missing and a column may be it under its short name, as in ``SDH``."""
    missing = [name for name in KINDS if not form.has([name])]
    short = {LABELS_IN_SHORT[name]: name for name in missing}
    found = [f"{name} may be {short[word]}" for name in form.header for word in re.split(r"\W+", name.upper())
             if word in short]  # fmt: skip
    if found:
        raise WorkError(
            f"{path}: has no column {', '.join(missing)}; {list_some(found)}: name each label's column as here, and "
            "give one value for each label, not one for each reader"
        )


def _label_table(path: Path, rows: pd.DataFrame, labels: Sequence[str], *, gaps: bool) -> pd.DataFrame:
    """Return a checked row for each key. ``rows`` have columns row, key, label (one of ``labels``) and value (text).

    ``gaps``: an empty value is a missing label.
    """
    texts = rows["value"].str.strip()
    numbers = pd.Series(to_numbers(texts.str.lower().replace(TRUTH_VALUES)))
    missing = (texts == "") & gaps
    for wrong, fault in ((~numbers.isin((0, 1)) & ~missing, "is not 0 or 1"), (rows["key"] == "", "has no key")):
        if wrong.any():
            first = rows[wrong].iloc[0]
            raise WorkError(f"{path}: row {first['row']}: {first['label']} {fault}")
    first = rows.drop_duplicates("key").set_index("key")["row"]
    rows = rows.assign(value=numbers)[~missing]
    cells = rows.groupby(["key", "label"], sort=False)
    differs = rows["value"] != cells["value"].transform("first")
    if differs.any():
        second = rows[differs].iloc[0]
        before = cells["row"].transform("first")[differs].iloc[0]
        raise WorkError(f"{path}: row {second['row']} contradicts row {before}: {second['label']} has two values")
    given = {label: rows[rows["label"] == label].drop_duplicates("key").set_index("key") for label in labels}
    table = pd.DataFrame({label: part["value"] for label, part in given.items()}).reindex(first.index)
    for label in labels:
        if table[label].isna().any() and not gaps:
            row = first[table[label].isna()].iloc[0]
            raise WorkError(f"{path}: row {row}: there is no value for the label {label} of the same key")
    if table.empty:
        raise WorkError(f"{path}: has no rows")
    if "any" in given:
        check_any(path, table, lambda key, label: int(given[LABELS[label]]["row"][table.index[key]]))
    else:
        table = with_any(path, table)
    return whole_labels(_with_certain(path, table) if gaps else table).assign(row=first)


def _with_certain(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Fill in missing labels that follow from others, and tell the user of them and of the rest.

    A kind is 0 where ``any`` is 0. ``any`` is 1 where a kind is. Nothing else is certain: ``any`` may be 1 without a
    kind.
    """
    given = table.isna().to_numpy().sum()
    kinds = table[list(KINDS)]
    table = kinds.mask(kinds.isna().mul(table["any"] == 0, axis=0), 0).assign(
        any=table["any"].mask(table["any"].isna() & (kinds == 1).any(axis=1), 1)
    )
    if given:
        left = table.isna().to_numpy().sum()
        tell(
            f"{path}: {given} labels are empty; {given - left} of them follow from others of their row (a kind is 0 "
            f"where any is, any is 1 where a kind is); {left} are missing and count in no loss and no metric"
        )
    return table
