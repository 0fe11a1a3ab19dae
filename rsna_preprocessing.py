"""The competition's DICOM files to a dataset: images, metadata, labels and patient-grouped folds.

A killed run goes on where it was, a finished one does only what has changed. ``dataset.json`` is written last: without it
a dataset is not complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.arguments import to_dict
from common.errors import UsageError, WorkError
from common.files import atomic_path, write_csv, write_json
from common.preprocessing.convert import ImageForm, Task, convert_files
from common.preprocessing.folder import check_space, claim_folder, list_files
from common.preprocessing.folds import assign_folds, check_folds, link_patients
from common.preprocessing.journal import Journal
from common.preprocessing.series import place_slices
from config import PreprocessingConfig
from rsna_dataset import (
    COMPETITION_FOLDER,
    DATASET_INFO,
    FORMAT_VERSION,
    IMAGE_ID,
    LABELS,
    CompetitionSource,
    dataset_folder,
    find_competition,
    fold_path,
    image_path,
    list_some,
    read_competition_labels,
    read_dataset_info,
    read_submission,
)

logger = logging.getLogger(__name__)

JOURNAL = ".converted.csv"
TRUTH_FILE = "phantom_truth.csv"  # stands beside the CSVs of a phantom
UNMATCHED = "labels_without_image.csv"
LINKED_SHARE = 0.01  # a larger group of linked patients is no coincidence but a fault in the pictures
LINKED_MIN_PATIENTS = 1000


def find_source(config: PreprocessingConfig) -> CompetitionSource:
    """Return where the competition's files lie; UsageError saying what was looked for where there are none."""
    searched = config.pre_source or config.data_input_folder
    source = find_competition(searched)
    if source is None:
        raise UsageError(
            f"{searched}: no competition data here or in {COMPETITION_FOLDER}/ (expected stage_2_train/*.dcm and "
            "stage_2_train.csv, or stage_1_train_images/ and stage_1_train.csv); for synthetic data run python "
            "rsna_phantom.py, then python preprocessing.py --pre_source=input/phantom --data_dataset=phantom"
        )
    return source


def image_form(config: PreprocessingConfig) -> ImageForm:
    """Return the form of the stored images that the options ask for."""
    if config.pre_window is None:
        return ImageForm(config.pre_size, (), "int16")
    return ImageForm(config.pre_size, config.pre_window, "uint8" if config.pre_type == "uint8" else "float32")


def journal_options(form: ImageForm) -> dict[str, Any]:
    """Return what an image depends on beside its file: with another value all images are made anew."""
    return {"version": FORMAT_VERSION, "size": form.size, "windows": form.windows, "dtype": form.dtype}


def dataset_options(config: PreprocessingConfig) -> dict[str, Any]:
    """Return the options that a dataset depends on, as they stand in dataset.json."""
    return {name: value for name, value in to_dict(config).items() if name.startswith("pre_") or name == "seed"} | {
        "pre_source": None  # where the files lay is nobody's business, and they may have moved since
    }


def list_source(source: CompetitionSource) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the source's DICOM files, and those whose name can't be an id (columns id, file, reason, message).

    The former have index ``image_id`` and split, bytes, mtime_ns, folder; sorted by split and id, so that nothing
    depends on the order in which the disk lists them.
    """
    tables = [list_files(source.train_images, ".dcm").assign(split="train", folder=str(source.train_images))]
    if source.test_images is not None:
        tables.append(list_files(source.test_images, ".dcm").assign(split="test", folder=str(source.test_images)))
    files = pd.concat(tables, ignore_index=True).rename(columns={"name": "image_id"})
    named = files["image_id"].map(lambda name: IMAGE_ID.fullmatch(name) is not None).astype(bool)
    twice = files["image_id"].duplicated() & named
    refused = pd.concat(
        [
            failure_rows(files[~named], "name", "the file's name is no id: letters, digits, '_', '-' and '.' only"),
            failure_rows(files[twice], "duplicate", "a training image has the same id"),
        ]
    )
    return files[named & ~twice].set_index("image_id"), refused


def failure_rows(files: pd.DataFrame, reason: Any, message: Any) -> pd.DataFrame:
    """Return rows of failed.csv for files with the columns image_id and folder."""
    parts = [f"{Path(folder).name}/{name}.dcm" for folder, name in zip(files["folder"], files["image_id"], strict=True)]
    return pd.DataFrame({"id": files["image_id"], "file": parts, "reason": reason, "message": message})


def source_hash(files: pd.DataFrame, refused: pd.DataFrame, source: CompetitionSource) -> str:
    """Return a hash of the source's state: names, sizes and times of all images, contents of both CSVs."""
    digest = hashlib.blake2b(digest_size=16)
    listing = files[["split", "bytes", "mtime_ns"]].to_csv(lineterminator="\n") + refused.to_csv(lineterminator="\n")
    digest.update(listing.encode("utf-8", "surrogateescape"))
    for path in (source.train_csv, source.sample_submission):
        digest.update(path.read_bytes() if path else b"")
    return digest.hexdigest()


def pending_tasks(files: pd.DataFrame, folder: Path, journal: Journal) -> list[Task]:
    """Return what is left to convert: all but the files that are as the journal knows them and whose image is whole."""
    done = journal.read().reindex(files.index)
    stored = list_files(folder / "images", ".npy").set_index("name")["bytes"].reindex(files.index)
    same = (done["split"] == files["split"]) & (done["file_bytes"] == files["bytes"])
    same &= done["mtime_ns"].fillna(-1).astype(np.int64) == files["mtime_ns"]
    # A file that could not be opened or parsed gets another try: it may have been the disk.
    failed = ~done["reason"].isin(("", "unreadable")) & done["reason"].notna()
    finished = same & (failed | ((done["reason"] == "") & (done["image_bytes"] == stored)))
    if not same.all() and journal.exists():
        known = int(done["split"].notna().sum())
        changed = known - int(same.sum())
        if known == 0:
            print("the options for images have changed (or the journal is of another version): converting all anew")
        elif changed:
            print(f"{changed} source files have changed since they were converted")
    rows = files[~finished.to_numpy()]
    return [
        Task(
            image_id,
            split,
            file_bytes,
            mtime_ns,
            Path(directory) / f"{image_id}.dcm",
            folder / "images" / f"{image_id}.npy",
        )
        for image_id, split, file_bytes, mtime_ns, directory in zip(
            rows.index, rows["split"], rows["bytes"].tolist(), rows["mtime_ns"].tolist(), rows["folder"], strict=True
        )
    ]


def is_complete(folder: Path, config: PreprocessingConfig, state: str) -> bool:
    """Whether the dataset was finished from the same source with the same options, and its tables are there."""
    try:
        info = read_dataset_info(folder)
        same = info["options"] == dataset_options(config) and info["source"]["hash"] == state
    except (UsageError, WorkError, KeyError, TypeError):
        return False
    tables = [folder / "metadata.csv", folder / "failed.csv", folder / UNMATCHED]
    tables += [fold_path(folder, config.data_dataset, fold) for fold in range(config.pre_folds)]
    return same and all(path.is_file() for path in tables)


def convert(tasks: Sequence[Task], total: int, folder: Path, form: ImageForm, journal: Journal, n_jobs: int) -> None:
    """Convert what is pending, noting each chunk of files in the journal as it is finished."""
    (folder / "images").mkdir(exist_ok=True)
    stored = dict(list_files(folder / "images", ".npy")[["name", "bytes"]].itertuples(index=False))
    freed = sum(stored.get(task.image_id, 0) for task in tasks)
    needed = form.bytes_needed(sum(task.file_bytes for task in tasks), len(tasks))
    check_space(folder, needed - freed + total * 1000 + 2**26)  # tables and journal: under 1000 bytes an image
    print(f"{total} files, {len(tasks)} of them to convert")
    failures = 0
    jobs = n_jobs or len(os.sched_getaffinity(0))
    with journal, tqdm(total=len(tasks), desc="preprocessing", unit="image", disable=None) as progress:
        for records in convert_files(tasks, form, jobs) if tasks else ():
            journal.add(records)
            failures += sum(record.reason != "" for record in records)
            progress.set_postfix(failed=failures, refresh=False)
            progress.update(len(records))


def write_tables(
    files: pd.DataFrame,
    refused: pd.DataFrame,
    journal: Journal,
    labels: pd.DataFrame,
    source: CompetitionSource,
    folder: Path,
    config: PreprocessingConfig,
    form: ImageForm,
    state: str,
) -> None:
    """Write everything but the images, dataset.json last; WorkError where no image has labels."""
    records = journal.read().loc[files.index]
    images = records[records["reason"] == ""]
    bad = records[records["reason"] != ""]
    bad_files = files.loc[bad.index].reset_index()
    failed = pd.concat([failure_rows(bad_files, bad["reason"].tolist(), bad["message"].tolist()), refused])
    failed = failed.sort_values(["file", "reason"])
    write_csv(folder / "failed.csv", failed)
    unmatched = unmatched_labels(labels, images, failed)
    write_csv(folder / UNMATCHED, unmatched)
    warn_about(failed, unmatched, images, labels, source, folder)

    train = images[(images["split"] == "train") & images.index.isin(labels.index)].sort_index()
    if train.empty:
        raise WorkError(
            f"{folder}: none of the {len(files)} files gave an image with labels; {folder / 'failed.csv'} and "
            f"{folder / UNMATCHED} say why"
        )
    metadata = metadata_table(images, labels)
    fold = make_folds(train, labels, config, folder)
    remove_leftovers(folder, images.index, config)
    write_csv(folder / "metadata.csv", metadata)
    rows = labels.loc[train.index, list(LABELS)].assign(patient_id=train["patient_id"], study_id=train["study_id"])
    for number in range(config.pre_folds):
        sample_type = pd.Series("train", index=train.index).mask(fold == number, "valid")
        table = rows.assign(sample_type=sample_type)[["sample_type", *LABELS, "patient_id", "study_id"]]
        write_csv(fold_path(folder, config.data_dataset, number), table.rename_axis("id").reset_index())
    copy_sample(source, folder)
    options = dataset_options(config)
    info = {
        "format_version": FORMAT_VERSION,
        "source": source_info(source) | {"hash": state},
        "options": options,
        "image_form": form.name,
        "windows": options["pre_window"],
        "dtype": form.dtype,
        "folds": config.pre_folds,
        "images": {split: int((images["split"] == split).sum()) for split in ("train", "test")},
        "failed": len(failed),
        "hash": content_hash(images, folder, config),
    }
    write_json(folder / DATASET_INFO, info)
    print(summary(images, labels.loc[train.index], failed))


def source_info(source: CompetitionSource) -> dict[str, Any]:
    """Return what dataset.json says of the source: a phantom has its truth file beside the CSVs."""
    kind = "phantom" if (source.train_csv.parent / TRUTH_FILE).is_file() else "competition"
    return {"kind": kind, "stage": source.stage}


def unmatched_labels(labels: pd.DataFrame, images: pd.DataFrame, failed: pd.DataFrame) -> pd.DataFrame:
    """Return id and reason of the labelled ids that have no image."""
    ids = pd.Index(sorted(labels.index.difference(images.index)))
    reasons = failed.drop_duplicates("id").set_index("id")["reason"].reindex(ids).fillna("no_file")
    return pd.DataFrame({"id": ids, "reason": reasons.to_numpy()})


def warn_about(
    failed: pd.DataFrame,
    unmatched: pd.DataFrame,
    images: pd.DataFrame,
    labels: pd.DataFrame,
    source: CompetitionSource,
    folder: Path,
) -> None:
    """Warn, with counts, of everything that is not as it should be."""
    if len(failed):
        counts = ", ".join(f"{reason} {count}" for reason, count in failed["reason"].value_counts().items())
        logger.warning("%d files gave no image (%s); see %s", len(failed), counts, folder / "failed.csv")
    if len(unmatched):
        logger.warning(
            "%d labelled images have no picture and are left out: %s; see %s",
            len(unmatched),
            list_some(unmatched["id"]),
            folder / UNMATCHED,
        )
    unlabelled = images.index[(images["split"] == "train") & ~images.index.isin(labels.index)]
    if len(unlabelled):
        logger.warning(
            "%d training images have no labels in %s and are in no fold: %s",
            len(unlabelled),
            source.train_csv,
            list_some(unlabelled),
        )
    if source.sample_submission is not None:
        missing = read_submission(source.sample_submission).index.difference(images.index)
        if len(missing):
            logger.warning("%d images of the sample submission have no picture: %s", len(missing), list_some(missing))
    doubtful = images.index[images["mended"].astype(str).str.contains("doubtful")]
    if len(doubtful):
        logger.warning("%d images may hold wrapped values and were left alone: %s", len(doubtful), list_some(doubtful))
    if images["warnings"].sum():
        logger.warning("pydicom had something to remark on %d files", int((images["warnings"] > 0).sum()))


def metadata_table(images: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Return metadata.csv: a row for each image in the order split, study, series, slice."""
    table = images.join(place_slices(images, first_known(images, "series_id", "study_id")))
    known = labels.reindex(table.index).where(table["split"] == "train")  # float64, NaN where unknown
    table = table.join(known[list(LABELS)])
    columns = ["split", "patient_id", "study_id", "series_id", "slice_index", "position_mm", "row_spacing_mm"]
    columns += ["column_spacing_mm", "rows", "columns", "mended", *LABELS]
    table = table[columns].rename_axis("id").reset_index()
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


def make_folds(train: pd.DataFrame, labels: pd.DataFrame, config: PreprocessingConfig, folder: Path) -> np.ndarray:
    """Return the fold of each training image (index ``image_id``, sorted), checked; say which patients were linked."""
    patients = first_known(train, "patient_id", "study_id")
    pictures = np.where(train["links"] == 1, train["digest"], "").astype(object)
    groups = link_patients(patients, pictures)
    sizes = pd.Series(patients).groupby(groups).nunique()
    if sizes.max() > 1:
        example = list_some(train.index[groups == sizes.idxmax()])
        message = (
            f"pixel-identical pictures link {int(sizes[sizes > 1].sum())} patients to {int((sizes > 1).sum())} groups; "
            f"the largest has {sizes.max()} patients (images {example})"
        )
        if len(np.unique(patients)) > LINKED_MIN_PATIENTS and sizes.max() > LINKED_SHARE * len(np.unique(patients)):
            raise WorkError(f"{folder}: {message}, too many to be true; look at these images")
        print(message)
    fold = assign_folds(groups, labels.loc[train.index, list(LABELS)].to_numpy(), config.pre_folds, config.seed)
    check_folds(fold, patients, pictures, train.index.to_numpy(dtype=object))
    return fold


def remove_leftovers(folder: Path, image_ids: Iterable[str], config: PreprocessingConfig) -> None:
    """Remove what an earlier or killed run left: images that no longer belong here, cut files, folds too many."""
    keep = {f"{image_id}.npy" for image_id in image_ids}
    for path in (folder / "images").iterdir():
        if path.name not in keep:
            path.unlink()
    pattern = re.compile(rf"dataset_{re.escape(config.data_dataset)}_fold_(\d+)\.csv")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and int(match[1]) >= config.pre_folds:
            path.unlink()


def copy_sample(source: CompetitionSource, folder: Path) -> None:
    """Copy the sample submission to the dataset, which then needs nothing of the source."""
    target = folder / "sample_submission.csv"
    if source.sample_submission is None:
        target.unlink(missing_ok=True)
        return
    with atomic_path(target) as temporary:
        temporary.write_bytes(source.sample_submission.read_bytes())


def content_hash(images: pd.DataFrame, folder: Path, config: PreprocessingConfig) -> str:
    """Return a hash of what training sees: every picture, the tables, and the options that images depend on."""
    digest = hashlib.blake2b(json.dumps(journal_options(image_form(config)), sort_keys=True).encode(), digest_size=16)
    digest.update(images["digest"].sort_index().to_csv(lineterminator="\n").encode())
    for path in [
        folder / "metadata.csv",
        *(fold_path(folder, config.data_dataset, f) for f in range(config.pre_folds)),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def summary(images: pd.DataFrame, labels: pd.DataFrame, failed: pd.DataFrame) -> str:
    """Return one line about a finished dataset."""
    counts = {split: int((images["split"] == split).sum()) for split in ("train", "test")}
    shares = ", ".join(f"{name} {share:.2%}" for name, share in labels.mean().items())
    return f"{counts['train']} train and {counts['test']} test images, {len(failed)} failed files; positive: {shares}"


