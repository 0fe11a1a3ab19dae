"""The competition's DICOM files to a dataset: images, metadata, labels and patient-grouped folds.

A killed run goes on where it was, a finished one does only what has changed. ``dataset.json`` is written last: without
it a dataset is not complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
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
from common.preprocessing.folds import assign_folds, check_folds, link_patients, picture_keys
from common.preprocessing.journal import Journal
from common.preprocessing.tables import (
    failure_rows,
    failure_table,
    first_known,
    metadata_table,
    remove_leftovers,
    unmatched_labels,
)
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
    list_some,
    read_competition_labels,
    read_dataset_info,
    read_submission,
)

logger = logging.getLogger(__name__)

JOURNAL = ".converted.csv"
TRUTH_FILE = "phantom_truth.csv"  # stands beside the CSVs of a phantom
UNMATCHED = "labels_without_image.csv"
TABLE_BYTES = 1000  # that an image takes in the tables and the journal, at most
LINKED_SHARE = 0.01  # a larger group of linked patients is no coincidence but a fault in the pictures
LINKED_MIN_PATIENTS = 1000


@dataclass(frozen=True)
class Job:
    """What one run works on.

    ``labels`` (index ``id``) and ``asked``, the ids of the sample submission, come from the source's CSVs; ``files``
    are its DICOM files (index ``image_id``: split, bytes, mtime_ns, folder), ``refused`` the rows of failed.csv for
    those whose name can't be an id.
    """

    config: PreprocessingConfig
    folder: Path
    form: ImageForm
    source: CompetitionSource
    labels: pd.DataFrame
    asked: pd.Index
    files: pd.DataFrame
    refused: pd.DataFrame

    @property
    def fold_paths(self) -> list[Path]:
        return [fold_path(self.folder, self.config.data_dataset, fold) for fold in range(self.config.pre_folds)]


def preprocess(config: PreprocessingConfig) -> Path:
    """Make or finish the dataset that ``config`` asks for and return its folder.

    Raises UsageError where there is no competition data or the folder can't be written, WorkError for labels that
    contradict each other, a full disk, or a source of which nothing can be used.
    """
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    source = find_source(config)
    labels = read_competition_labels(source.train_csv)
    asked = pd.Index([]) if source.sample_submission is None else read_submission(source.sample_submission).index
    with claim_folder(folder), claim_folder(folder / "images"):
        job = Job(config, folder, image_form(config), source, labels, asked, *list_source(source))
        journal = Journal(folder / JOURNAL, journal_options(job.form))
        warn_of_other_source(job)
        tasks = pending_tasks(job, journal)
        state = source_hash(job)
        if not tasks and is_complete(job, state):
            say(f"{len(job.files)} files: nothing has changed since the dataset was made")
        else:
            (folder / DATASET_INFO).unlink(missing_ok=True)  # until the end the dataset is not complete
            convert(job, tasks, journal)
            write_tables(job, journal.read().loc[job.files.index], state)
    return folder


def say(line: str) -> None:
    """Tell the user how the work goes; standard output is left to the dataset's folder."""
    print(line, file=sys.stderr)


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
    """Return the options that a dataset depends on, as they stand in dataset.json; not where its source lay."""
    names = ("pre_folds", "pre_size", "pre_window", "pre_type", "seed")
    return {name: value for name, value in to_dict(config).items() if name in names}


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


def source_hash(job: Job) -> str:
    """Return a hash of the source's state: names, sizes and times of all images, contents of both CSVs."""
    digest = hashlib.blake2b(digest_size=16)
    for table in (job.files[["split", "bytes", "mtime_ns"]], job.refused):
        digest.update(table.to_csv(lineterminator="\n").encode("utf-8", "surrogateescape"))
    for path in (job.source.train_csv, job.source.sample_submission):
        digest.update(path.read_bytes() if path else b"")
    return digest.hexdigest()


def pending_tasks(job: Job, journal: Journal) -> list[Task]:
    """Return what is left to convert: all but the files that are as the journal knows them and whose image is whole."""
    files = job.files
    records = journal.read()
    done = records.reindex(files.index)
    # On its own: beside a missing row the column would become float64, which has no room for nanoseconds.
    mtime_ns = records["mtime_ns"].reindex(files.index, fill_value=-1)
    stored = list_files(job.folder / "images", ".npy").set_index("name")["bytes"].reindex(files.index)
    same = (done["split"] == files["split"]) & (done["file_bytes"] == files["bytes"])
    same &= mtime_ns == files["mtime_ns"]
    converted = (done["reason"] == "") & (done["image_bytes"] == stored)
    # A file that could not be opened or parsed gets another try: it may have been the disk.
    hopeless = done["reason"].notna() & ~done["reason"].isin(("", "unreadable"))
    known = done["split"].notna()
    if journal.exists() and records.empty:
        say("no image of an earlier run was made with these options: converting all files anew")
    elif (known & ~same).any():
        say(f"{int((known & ~same).sum())} source files have changed since they were converted")
    return [
        Task(row.Index, row.split, row.bytes, row.mtime_ns, Path(row.folder) / f"{row.Index}.dcm",
             job.folder / "images")
        for row in files[~(same & (converted | hopeless))].itertuples()
    ]  # fmt: skip


def warn_of_other_source(job: Job) -> None:
    """Warn where a dataset of the same name was made from a phantom and is now made from real data, or vice versa."""
    try:
        made_from = read_dataset_info(job.folder)["source"]["kind"]
    except (UsageError, WorkError, KeyError, TypeError):
        return  # there is none, or none that was finished
    if made_from != source_kind(job.source):
        logger.warning(
            "%s: was made from %s files and is made anew from %s files", job.folder, made_from, source_kind(job.source)
        )


def source_kind(source: CompetitionSource) -> str:
    """Return ``phantom`` or ``competition``."""
    return "phantom" if (source.train_csv.parent / TRUTH_FILE).is_file() else "competition"


def is_complete(job: Job, state: str) -> bool:
    """Whether the dataset was finished from the same source with the same options, and its tables are there."""
    try:
        info = read_dataset_info(job.folder)
        same = info["options"] == dataset_options(job.config) and info["source"]["hash"] == state
    except (UsageError, WorkError, KeyError, TypeError):
        return False
    names = ["metadata.csv", "failed.csv", UNMATCHED] + ["sample_submission.csv"] * (len(job.asked) > 0)
    return same and all(path.is_file() for path in [job.folder / name for name in names] + job.fold_paths)


def convert(job: Job, tasks: Sequence[Task], journal: Journal) -> None:
    """Convert what is pending, noting each chunk of files in the journal as it is finished."""
    stored = list_files(job.folder / "images", ".npy").set_index("name")["bytes"]
    freed = int(stored.reindex([task.image_id for task in tasks]).sum())
    needed = job.form.bytes_needed(sum(task.file_bytes for task in tasks), len(tasks))
    check_space(job.folder, needed - freed + len(job.files) * TABLE_BYTES)
    say(f"{len(job.files)} files, {len(tasks)} of them to convert")
    failures = 0
    jobs = job.config.n_jobs or len(os.sched_getaffinity(0))
    with journal, tqdm(total=len(tasks), desc="preprocessing", unit="image", disable=None) as progress:
        for records in convert_files(tasks, job.form, jobs) if tasks else ():
            journal.add(records)
            failures += sum(record.reason != "" for record in records)
            progress.set_postfix(failed=failures, refresh=False)
            progress.update(len(records))


def write_tables(job: Job, records: pd.DataFrame, state: str) -> None:
    """Write everything but the images, dataset.json last; WorkError where no image has labels."""
    folder, labels = job.folder, job.labels
    images = records[records["reason"] == ""]
    failed = failure_table(records, job.files, job.refused)
    unmatched = unmatched_labels(labels, images, failed)
    write_csv(folder / "failed.csv", failed)
    write_csv(folder / UNMATCHED, unmatched)
    warn_about(job, images, failed, unmatched)
    train = images[(images["split"] == "train") & images.index.isin(labels.index)].sort_index()
    if train.empty:
        raise WorkError(
            f"{folder}: none of the {len(job.files)} files gave an image with labels; {folder / 'failed.csv'} and "
            f"{folder / UNMATCHED} say why"
        )
    fold = make_folds(job, train)
    remove_leftovers(folder, images.index, job.fold_paths)
    write_csv(folder / "metadata.csv", metadata_table(images, labels))
    rows = labels.loc[train.index].assign(patient_id=train["patient_id"], study_id=train["study_id"])
    for number, path in enumerate(job.fold_paths):
        rows["sample_type"] = np.where(fold == number, "valid", "train")
        table = rows[["sample_type", *LABELS, "patient_id", "study_id"]]
        write_csv(path, table.rename_axis("id").reset_index())
    copy_sample(job)
    write_json(folder / DATASET_INFO, dataset_info(job, images, failed, state))
    shares = ", ".join(f"{name} {share:.2%}" for name, share in labels.loc[train.index].mean().items())
    counts = images["split"].value_counts()
    say(f"{counts['train']} train and {counts.get('test', 0)} test images, {len(failed)} failed files; {shares}")


def dataset_info(job: Job, images: pd.DataFrame, failed: pd.DataFrame, state: str) -> dict[str, Any]:
    """Return what dataset.json says; ``hash``: of all that training sees, ``source.hash``: of what it was made from."""
    options = dataset_options(job.config)
    return {
        "format_version": FORMAT_VERSION,
        "source": {"kind": source_kind(job.source), "stage": job.source.stage, "hash": state},
        "options": options,
        "image_form": job.form.name,
        "windows": options["pre_window"],
        "dtype": job.form.dtype,
        "images": {split: int((images["split"] == split).sum()) for split in ("train", "test")},
        "failed": len(failed),
        "hash": content_hash(job, images),
    }


def warn_about(job: Job, images: pd.DataFrame, failed: pd.DataFrame, unmatched: pd.DataFrame) -> None:
    """Warn, with counts, of everything that is not as it should be."""
    if len(failed):
        counts = ", ".join(f"{reason} {count}" for reason, count in failed["reason"].value_counts().items())
        logger.warning("%d files gave no image (%s); see %s", len(failed), counts, job.folder / "failed.csv")
    if len(unmatched):
        logger.warning(
            "%d labelled images have no picture and are left out: %s; see %s",
            len(unmatched),
            list_some(unmatched["id"]),
            job.folder / UNMATCHED,
        )
    unlabelled = images.index[(images["split"] == "train") & ~images.index.isin(job.labels.index)]
    if len(unlabelled):
        logger.warning(
            "%d training images have no labels in %s and are in no fold: %s",
            len(unlabelled),
            job.source.train_csv,
            list_some(unlabelled),
        )
    missing = job.asked.difference(images.index)
    if len(missing):
        logger.warning("%d images of the sample submission have no picture: %s", len(missing), list_some(missing))
    doubtful = images.index[images["mended"].astype(str).str.contains("doubtful")]
    if len(doubtful):
        logger.warning("%d images may hold wrapped values and were left alone: %s", len(doubtful), list_some(doubtful))
    if images["warnings"].sum():
        logger.warning("pydicom had something to remark on %d files", int((images["warnings"] > 0).sum()))


def make_folds(job: Job, train: pd.DataFrame) -> np.ndarray:
    """Return the fold of each training image (index ``image_id``, sorted), checked; say which patients were linked."""
    patients = first_known(train, "patient_id", "study_id")
    pictures = picture_keys(train)
    groups = link_patients(patients, pictures)
    sizes = pd.Series(patients).groupby(groups).nunique()
    if sizes.max() > 1:
        example = list_some(train.index[groups == sizes.idxmax()])
        message = (
            f"pixel-identical pictures link {int(sizes[sizes > 1].sum())} patients to {int((sizes > 1).sum())} groups; "
            f"the largest has {sizes.max()} patients (images {example})"
        )
        if len(np.unique(patients)) > LINKED_MIN_PATIENTS and sizes.max() > LINKED_SHARE * len(np.unique(patients)):
            raise WorkError(f"{job.folder}: {message}, too many to be true; look at these images")
        say(message)
    labels = job.labels.loc[train.index].to_numpy()
    fold = assign_folds(groups, labels, job.config.pre_folds, job.config.seed)
    check_folds(fold, patients, pictures, train.index.to_numpy(dtype=object))
    return fold


def copy_sample(job: Job) -> None:
    """Copy the sample submission to the dataset, which then needs nothing of the source."""
    target = job.folder / "sample_submission.csv"
    if job.source.sample_submission is None:
        target.unlink(missing_ok=True)
        return
    with atomic_path(target) as temporary:
        temporary.write_bytes(job.source.sample_submission.read_bytes())


def content_hash(job: Job, images: pd.DataFrame) -> str:
    """Return a hash of what training sees: every picture, the tables, and the options that images depend on."""
    digest = hashlib.blake2b(json.dumps(journal_options(job.form), sort_keys=True).encode(), digest_size=16)
    digest.update(images["digest"].sort_index().to_csv(lineterminator="\n").encode())
    for path in [job.folder / "metadata.csv", *job.fold_paths]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
