"""Make a dataset from DICOM files, the competition's or any other: images, metadata, labels, folds by patient.

The same command continues a run that was killed, and updates a finished dataset: it converts only files that are new
or have changed. ``dataset.json`` is written last, so a dataset without it is not complete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common.cli.console import tell
from common.errors import UsageError, WorkError
from common.files import remove_temporaries
from common.preprocessing.folder import claim_folder
from common.preprocessing.journal import Journal
from common.preprocessing.masks import check_source, remove_masks, take_masks
from common.preprocessing.naming import misnamed, named_by_path
from common.preprocessing.pseudonyms import load_key
from rsna.prepare.conversion import check_persons, convert, pending_tasks
from rsna.prepare.job import Job, build_job, dataset_options, journal_options, label_report, source_hash, tasks_of
from rsna.prepare.options import PreprocessingConfig
from rsna.prepare.remarks import check_share, warn_of_other_source
from rsna.prepare.series_choice import SERIES_FILE
from rsna.prepare.source import find_source, key_place, read_tables
from rsna.prepare.tables import CROP_SHEET, write_tables
from rsna_dataset import (
    AUDIT_FILE,
    DATASET_INFO,
    FAILED_FILE,
    JOURNAL,
    KINDS,
    MASKS,
    METADATA_FILE,
    SAMPLE_FILE,
    dataset_folder,
    read_dataset_info,
    read_metadata,
)

logger = logging.getLogger(__name__)

OLD_REPORTS = (CROP_SHEET, AUDIT_FILE, "verify_failed.csv")  # they describe the dataset as it was before a change


def preprocess(config: PreprocessingConfig, look_at: Callable[[Path], None] | None = None) -> Path:
    """Make, continue or update the dataset that ``config`` describes. Return its folder.

    When everything is written, ``look_at`` is called with the folder, even if too many files failed.

    Raises UsageError if there is no data or the folder can't be written. Raises WorkError for labels that contradict
    each other, a full disk, and a source without any usable file. If too many files failed, everything is written
    first, then WorkError is raised.
    """
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    if config.pre_masks is not None:
        check_source(config.pre_masks, folder)
    source = find_source(config)
    tables = read_tables(source, config)
    with claim_folder(folder), claim_folder(folder / "images"):
        key_file = key_place(config)
        job = build_job(config, folder, source, tables, key_file, load_key(key_file))
        state = source_hash(job)
        journal = Journal(folder / JOURNAL, journal_options(job))
        warn_of_other_source(job)
        tasks = pending_tasks(job, journal)
        if not tasks and is_complete(job, state):
            tell(f"{len(job.files)} files: nothing has changed since the dataset was made")
        else:
            if tasks:
                check_persons(job)
            for name in (DATASET_INFO, *OLD_REPORTS):  # the dataset is not complete until write_tables has ended
                (folder / name).unlink(missing_ok=True)
            remove_temporaries(folder)
            if remove_masks(folder / MASKS) and config.pre_masks is None:
                tell(f"{folder / MASKS}: removed, since the dataset changes; give --pre_masks again")
            convert(job, tasks, journal)
            records = journal.read()
            job = replace(job, files=named_by_path(job.files, records))
            renamed = misnamed(job.files, records, job.pseudonyms)
            if len(renamed):
                tell(f"{len(renamed)} files share their SOPInstanceUID with others; their ids come from their paths")
                convert(job, tasks_of(job, job.files.loc[renamed]), journal)
                records = journal.read()
            write_tables(job, records, state)
        if config.pre_masks is not None:
            images = read_metadata(folder, described=True)
            tell(take_masks(config.pre_masks, folder / MASKS, images, config.pre_size, len(KINDS)))
        if look_at is not None:
            look_at(folder)
        check_share(journal.read(), job)
    return folder


def is_complete(job: Job, state: str) -> bool:
    """Whether the dataset was finished from the same source with the same options and has all its tables."""
    try:
        info = read_dataset_info(job.folder)
        same = info["options"] == dataset_options(job.config) and info["source"]["hash"] == state
    except (UsageError, WorkError, KeyError, TypeError):
        return False
    paths = [job.folder / name for name in (METADATA_FILE, SERIES_FILE, FAILED_FILE, label_report(job))]
    paths += [job.folder / CROP_SHEET] * job.form.crop
    paths += [job.id_map.path] * ("pseudonyms" in info)
    paths += [job.folder / SAMPLE_FILE] * (len(job.asked) > 0) + job.fold_paths * (info["labelled"] > 0)
    return same and all(path.is_file() for path in paths)
