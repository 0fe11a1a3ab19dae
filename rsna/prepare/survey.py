"""Tell in seconds what a source holds and what dataset it would give, without writing anything (--check).

The functions that convert files read a few hundred of them, with the same rules. Labels, groups and folds are checked
as in a conversion.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from common.errors import UserError, WorkError, list_some
from common.machine import usable_cores
from common.preprocessing.failures import count_reasons, failure_table, is_no_slice
from common.preprocessing.folder import check_space
from common.preprocessing.folds import check_parts
from common.preprocessing.groups import group_images
from common.preprocessing.journal import record_table
from common.preprocessing.pseudonyms import KEY_BYTES, load_key
from common.preprocessing.records import Record
from common.preprocessing.series import describe_singles
from common.preprocessing.tables import mark_repeated, metadata_table, unique_images
from common.preprocessing.workers import convert_files, spread
from common.reports.record import duration
from rsna.prepare.conversion import TABLE_BYTES
from rsna.prepare.job import Job, build_job, file_tasks, is_labelled, label_source
from rsna.prepare.options import PreprocessingConfig
from rsna.prepare.remarks import failed_share, list_reasons, too_many_failed
from rsna.prepare.series_choice import describe_choice, series_table, without_choice
from rsna.prepare.source import find_source, key_place, read_tables
from rsna.prepare.tables import file_order, label_images, label_shares, make_groups
from rsna_dataset import LABELS, STUDY_LABELS, dataset_folder, identities_of

SURVEY_FILES = 400  # read at most
SURVEY_SECONDS = 10.0  # after which no further batch is begun
BATCH_FILES = 50
PERSONS = (("patient_id", "patients"), ("study_id", "studies"), ("series_id", "series"))


@dataclass(frozen=True)
class Sample:
    """The files that were read, rows of the job's, and their ``records``.

    ``seconds`` is the mean time for one file with all processes at work.
    """

    files: pd.DataFrame
    records: pd.DataFrame
    seconds: float


def survey(config: PreprocessingConfig) -> None:
    """Print what a source holds and what dataset a conversion would make. Write nothing.

    Raises the error that would end a conversion, as far as the files read show it. The report is printed first, except
    if there is no source or a table can't be read.
    """
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    source = find_source(config)
    key_file = key_place(config)
    key = load_key(key_file) if key_file.exists() else secrets.token_bytes(KEY_BYTES)
    job = build_job(config, folder, source, read_tables(source, config), key_file, key)
    faults: list[UserError] = []
    for line in describe(job, faults):
        print(line)
    print("nothing was written")
    if faults:
        raise type(faults[0])("; ".join(map(str, faults)))


def describe(job: Job, faults: list[UserError]) -> Iterator[str]:
    """Yield the report of a job line by line. Add the errors that would end its run to ``faults``."""
    root = job.source.tree.root
    yield f"{root}: {kind_of(job)}, {len(job.files):,} files of {size(int(job.files['bytes'].sum()))}"
    if len(job.refused):
        yield f"  not opened: {len(job.refused):,} ({count_reasons(job.refused)})"
    sample = read_sample(job)
    whole = len(sample.files) == len(job.files)
    yield (
        f"  all {len(job.files):,} files were read"
        if whole
        else f"  {len(sample.files):,} files were read, spread over all; what follows is of these"
    )
    images = numbered(sample.records)
    failed = failure_table(sample.records, sample.files, job.refused.iloc[: len(job.refused) * whole])
    other = is_no_slice(failed)
    yield f"CT slices: {len(images):,}"
    yield f"no slices (they never count as failures): {int(other.sum()):,}{in_brackets(count_reasons(failed[other]))}"
    yield f"failures: {int((~other).sum()):,}{in_brackets(count_reasons(failed[~other]))}"
    count, files = failed_share(failed, len(sample.files) + len(job.refused) * whole)
    if count > job.config.pre_max_failed * files:
        faults.append(WorkError(f"{root}: {too_many_failed(count, files, job.config.pre_max_failed)}"))
    if images.empty:
        faults.append(WorkError(f"{root}: no file that was read gives an image"))
        return
    known = job.labels.index.intersection(sample.files["file_id"])
    labelled, images, unmatched = label_images(replace(job, labels=job.labels.loc[known]), images, failed)
    images = images.assign(group_id=make_groups(labelled, images))
    counts = ", ".join(f"{what} {count_of(images[name]):,}" for name, what in PERSONS)
    yield f"{'' if whole else 'at least '}{counts}"
    for name, what in PERSONS:
        if (images[name] == "").any():
            yield f"  {int((images[name] == '').sum()):,} slices name none of the {what}"
    table = metadata_table(images, labelled.labels, file_order(job.files, images)).set_index("id")
    if whole and (singles := describe_singles(table)):
        yield singles
    yield from describe_series(job, table, whole)
    yield from describe_labels(job, labelled.labels, images, unmatched["row"] if whole and "row" in unmatched else ())
    yield from describe_folds(labelled, images, whole, faults)
    yield from describe_cost(job, sample, faults)


def kind_of(job: Job) -> str:
    """Return in words what kind of files a source has, as in ``competition files of stage 2``."""
    competition = job.source.competition
    return "DICOM files" if competition is None else f"{job.source.kind} files of stage {competition.stage}"


def size(count: int) -> str:
    """Return a number of bytes as text, as in ``1.50 GB`` or ``3.2 MB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def in_brackets(text: str) -> str:
    """Return a space and the text in brackets; empty for an empty text."""
    return f" ({text})" * bool(text)


def count_of(names: pd.Series) -> int:
    """Return the number of different names. "" stands for an unknown one and doesn't count."""
    return len(set(names) - {""})


def read_sample(job: Job) -> Sample:
    """Read files spread evenly over the source, until there are enough or the time is over."""
    jobs = job.config.n_jobs or usable_cores()
    order = spread(len(job.files))[:SURVEY_FILES]
    records: list[Record] = []
    read, seconds, timed = 0, 0.0, 0
    started = time.perf_counter()
    # A second batch is always read. The first can't tell how long a file takes, since processes start during it.
    while read < len(order) and (timed == 0 or time.perf_counter() - started < SURVEY_SECONDS):
        places = order[read : read + BATCH_FILES]
        tasks = file_tasks(job.source.tree, job.files.iloc[places], None)
        began = time.perf_counter()
        for chunk in convert_files(tasks, job.form, jobs, job.pseudonyms):
            records += chunk
        if read or len(order) <= BATCH_FILES:
            seconds, timed = seconds + time.perf_counter() - began, timed + len(places)
        read += len(places)
    return Sample(job.files.iloc[np.sort(order[:read])], record_table(records), seconds / max(timed, 1))


def numbered(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with an image, indexed by image id. Files that share a SOPInstanceUID get distinct ids."""
    repeat = records.groupby("image_id").cumcount()
    again = (repeat > 0) & (records["reason"] == "")
    ids = np.where(again, records["image_id"] + "_" + repeat.astype(str), records["image_id"])
    return mark_repeated(unique_images(records.assign(image_id=ids)).sort_index())


def describe_series(job: Job, table: pd.DataFrame, whole: bool) -> Iterator[str]:
    """Yield which series would be chosen, by the files read, and which studies have none. ``table``: the metadata.

    Unless the ``whole`` source was read, a study without any may have one among the other files.
    """
    series = series_table(table, job.config.series_mode(competition=job.source.competition is not None))
    yield f"series: {describe_choice(series)}"
    if whole and (without := without_choice(series)):
        yield f"  {len(without):,} studies have no series to use: {list_reasons(without)}"


def describe_labels(job: Job, labels: pd.DataFrame, images: pd.DataFrame, unmatched: Sequence[int]) -> Iterator[str]:
    """Yield how labels and images fit. ``labels`` is indexed by image id; ``unmatched`` are rows that fit no image."""
    if not is_labelled(job):
        yield "labels: none, and so no folds; --pre_labels=file.csv gives them"
        return
    fits = images.index.isin(labels.index)
    if job.label_file is None:
        names = job.files.loc[job.files["split"] == "train", "file_id"]
        yield (
            f"labels: {len(job.labels):,} images in {job.source.competition.train_csv}; "
            f"{int(names.isin(job.labels.index).sum()):,} of all {len(names):,} training files have labels, "
            f"{len(job.labels.index.difference(names)):,} labelled images have no file"
        )
    else:
        by = ", ".join(f"{count:,} by {name}" for name, count in labels["label_level"].value_counts().items())
        yield (
            f"labels: {len(job.label_file):,} keys in {label_source(job.config)}; {int(fits.sum()):,} of "
            f"{len(images):,} slices have labels{in_brackets(by)}"
        )
        if len(unmatched):
            yield f"  {len(unmatched):,} keys fit no slice (rows {list_some(map(str, unmatched))})"
    if fits.any():
        yield f"  positive: {label_shares(labels.loc[images.index[fits]], 1)}"
        if STUDY_LABELS[0] in labels:
            studies = labels.loc[images.index[fits], list(STUDY_LABELS)].groupby(images["study_id"]).first()
            yield f"  positive by study: {label_shares(studies.set_axis(list(LABELS), axis=1), 1)}"


def describe_folds(job: Job, images: pd.DataFrame, whole: bool, faults: list[UserError]) -> Iterator[str]:
    """Yield whether the requested folds are possible. The labels of ``job`` are indexed by image id."""
    if not is_labelled(job):
        return
    train = images[(images["split"] == "train") & images.index.isin(job.labels.index)]
    if train.empty:
        what = "none of the slices has labels"
        yield f"folds: {what}"
        if whole:
            faults.append(WorkError(f"{job.source.tree.root}: {what}"))
        return
    studies = group_images(identities_of(train, "study"))
    groups, config = count_of(train["group_id"]), job.config
    asked = f"--pre_folds={config.pre_folds}{f' --pre_holdout={config.pre_holdout}' * (config.pre_holdout > 0)}"
    try:
        check_parts(config.pre_folds, config.pre_holdout, groups, count_of(pd.Series(studies)))
        yield f"folds: {asked} is possible, with {groups:,} groups (--pre_group={config.pre_group}) that have labels"
    except UserError as error:
        if whole:
            faults.append(error)
        yield f"folds: {error}" + "; a conversion reads more files before it says so" * (not whole)


def describe_cost(job: Job, sample: Sample, faults: list[UserError]) -> Iterator[str]:
    """Yield an estimate, from the files read, of the disk space and time that a new dataset takes."""
    share = len(job.files) / len(sample.files)
    needed = int(sample.records["image_bytes"].sum() * share) + len(job.files) * TABLE_BYTES
    place = next(folder for folder in (job.folder, *job.folder.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    processes = job.config.n_jobs or usable_cores()
    yield (
        f"a new dataset in {job.folder} takes about {size(needed)} ({size(free)} are free), and about "
        f"{duration(max(1, sample.seconds * len(job.files)))} with --n_jobs={processes} where no disk holds it up"
    )
    try:
        check_space(place, needed)
    except UserError as error:
        faults.append(error)
