"""Find the files that are left to convert, convert them, and record each in the journal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd

from common.cli.console import progress, tell
from common.dicom.errors import RETRIED_REASONS
from common.errors import UsageError
from common.machine import usable_cores
from common.preprocessing.folder import check_space, list_files
from common.preprocessing.folds import check_parts
from common.preprocessing.id_map import need_rows
from common.preprocessing.journal import Journal
from common.preprocessing.naming import misnamed, named_by_path
from common.preprocessing.records import Task
from common.preprocessing.scheduler import dask_cluster
from common.preprocessing.sources import can_be_image
from common.preprocessing.workers import convert_files, find_persons
from rsna.prepare.job import Job, is_labelled, tasks_of

logger = logging.getLogger(__name__)

PERSON_FILES = 1000  # files read, at most, to count patients if no folds are made
TABLE_BYTES = 1000  # of one image in the tables and the journal, at most


def pending_tasks(job: Job, journal: Journal) -> list[Task]:
    """Return the tasks that are left: files that are new or have changed, and files whose images are truncated."""
    records = journal.read()
    files = named_by_path(job.files, records)
    stored = list_files(job.folder / "images", job.form.suffix).set_index("name")["bytes"]
    whole = records["image_bytes"] == stored.reindex(records["image_id"]).to_numpy()
    whole &= ~records["image_id"].isin(missing_in_map(job, records))
    # A file that could not be opened or parsed is tried again: the disk may have been at fault.
    failed_for_good = ~records["reason"].isin(("", *RETRIED_REASONS))
    finished = ((whole & (records["reason"] == "")) | failed_for_good).groupby(records["source_id"]).all()
    known = records.drop_duplicates("source_id").set_index("source_id")[["split", "file_bytes", "mtime_ns"]]
    known = known[known.index.isin(files.index)].astype({"split": object})
    current = files.loc[known.index]
    same = (known["split"] == current["split"]) & (known["file_bytes"] == current["bytes"])
    same &= known["mtime_ns"] == current["mtime_ns"]
    if journal.exists() and records.empty:
        if job.source.competition is None and "public" in journal.options():  # as versions without keyed hashes wrote
            logger.warning(
                "%s: its ids were made of files' names, which may name patients; all files are converted anew, and "
                "ids become keyed hashes: what was trained or predicted with the old ones keeps them",
                job.folder,
            )
        else:
            tell("no image of an earlier run was made with these options: converting all files anew")
    elif not same.all():
        tell(f"{int((~same).sum())} source files have changed since they were converted")
    done = same.index[same & finished.reindex(same.index)].difference(misnamed(files, records, job.pseudonyms))
    return tasks_of(job, files[~files.index.isin(done)])


def missing_in_map(job: Job, records: pd.DataFrame) -> pd.Index:
    """Return the images whose row in the map of ids is lost. Only ids that were made here need a row."""
    images = records[records["reason"] == ""].drop_duplicates("image_id").set_index("image_id")
    needed = need_rows(images)
    if not needed.any():
        return pd.Index([])
    missing = needed.index[needed].difference(job.id_map.read().index)
    if len(missing):
        tell(f"{job.id_map.path}: has no row for {len(missing)} images; their files are read again")
    return missing


def check_persons(job: Job) -> None:
    """Check, before anything is converted, that there are enough patients for the folds.

    Anonymized archives often give all patients the same PatientID. With labels, raise UsageError if there are too few
    patients. Without labels there are no folds, so only warn.
    """
    config = job.config
    labelled, by_study = is_labelled(job), config.pre_group == "study"
    wanted = config.pre_folds + (config.pre_holdout > 0) if labelled else 2
    persons, studies = find_persons(
        tasks_of(job, job.files), wanted, by_study=by_study, most_files=None if labelled else PERSON_FILES
    )
    if persons >= wanted or persons == 0:  # if it is 0, the conversion reports why no file can be read
        return
    source = f"{config.pre_source or config.data_input_folder}"
    one_for_all = f"{source}: all {studies} studies carry the same PatientID"
    if not labelled:
        if studies > 1 and not by_study:
            logger.warning(
                "%s: folds and intervals will take them for one patient; if it stands for many, --pre_group=study "
                "takes each study for a patient", one_for_all,
            )  # fmt: skip
        return
    what = one_for_all if persons == 1 < studies and not by_study else (
        f"{source}: the files are of {persons} {'studies' if by_study else 'patients'} in {studies} studies"
    )  # fmt: skip
    try:
        check_parts(config.pre_folds, config.pre_holdout, persons, 0 if by_study else studies)
    except UsageError as error:
        raise UsageError(f"{what}; {error}; without labels there are no folds; nothing was converted") from None


def convert(job: Job, tasks: Sequence[Task], journal: Journal) -> None:
    """Convert the files of ``tasks`` in chunks. Write each finished chunk to the journal."""
    stored = list_files(job.folder / "images", job.form.suffix).set_index("name")["bytes"]
    replaced = [task.own_id for task in tasks]
    if "" in replaced:
        records = journal.read()
        replaced = records["image_id"][records["source_id"].isin([task.source_id for task in tasks])]
    freed = int(stored.reindex(replaced).sum())
    # A large file that is no DICOM file, such as a backup, gives no image and needs no space.
    written = [task.file_bytes for task in tasks if can_be_image(task.source, task.file_bytes)]
    needed, smaller = (form.bytes_needed(sum(written), len(written)) - freed + len(job.files) * TABLE_BYTES
                       for form in (job.form, replace(job.form, file_format="blosc2")))  # fmt: skip
    check_space(job.folder, needed, {"--pre_format=blosc2": smaller})
    tell(f"{len(job.files)} files, {len(tasks)} of them to convert")
    failures, left = 0, len(tasks)
    jobs = job.config.n_jobs or usable_cores()
    dask = job.config.pre_scheduler == "dask" and len(tasks) > 0
    workers = dask_cluster(job.config.pre_dask_address, jobs) if dask else nullcontext(jobs)
    paths = job.files["path"]
    with (
        journal,
        job.id_map as id_map,
        workers as jobs,
        progress(total=len(tasks), desc="preprocessing", unit="file") as bar,
    ):
        try:
            for records in convert_files(tasks, job.form, jobs, job.pseudonyms) if tasks else ():
                id_map.add(records, paths.get)
                journal.add(records)
                done = len({record.source_id for record in records})
                left -= done
                failures += sum(record.reason != "" for record in records)
                bar.set_postfix(failed=failures, refresh=False)
                bar.update(done)
        except KeyboardInterrupt:
            bar.close()
            tell(f"stopped with {left} of {len(job.files)} files to convert; start the same command again to go on")
            raise
