"""DICOM files, the competition's or any other, to a dataset: images, metadata, labels and patient-grouped folds.

A killed run goes on where it was, a finished one does only what has changed. ``dataset.json`` is written last: without
it a dataset is not complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.cli.arguments import to_dict
from common.cli.console import progress, tell
from common.dicom.errors import RETRIED_REASONS
from common.errors import UsageError, WorkError, list_some, nearest_file
from common.files import atomic_path, remove_temporaries, write_csv, write_json
from common.machine import usable_cores
from common.preprocessing.archives import ARCHIVE_SUFFIXES, UNREAD_SUFFIXES
from common.preprocessing.convert import KEPT, ImageForm, Record, Task
from common.preprocessing.crop_sheet import choose_images, write_crop_sheet
from common.preprocessing.failures import count_reasons, failure_rows, failure_table, is_no_slice, shown
from common.preprocessing.folder import check_space, claim_folder, list_files
from common.preprocessing.folds import assign_folds, check_folds, check_parts, fold_tables
from common.preprocessing.groups import describe_links, group_images, large_group
from common.preprocessing.id_map import IdMap, file_rows, need_rows
from common.preprocessing.journal import Journal
from common.preprocessing.labels import join_labels, locate_labels
from common.preprocessing.naming import misnamed, named_by_path
from common.preprocessing.pseudonyms import FILE, IMAGE, Pseudonyms, load_key
from common.preprocessing.scheduler import dask_cluster
from common.preprocessing.series import describe_singles
from common.preprocessing.sources import Tree, can_be_image, open_tree, printable, stem
from common.preprocessing.tables import (
    REPEATED_UID,
    mark_repeated,
    metadata_table,
    remove_leftovers,
    unique_images,
    unmatched_labels,
)
from common.preprocessing.workers import convert_files, find_persons
from config import PreprocessingConfig
from rsna.forms import read_competition_labels, read_label_file, read_submission, read_submission_texts
from rsna.prepare.competition import COMPETITION_FOLDER, CompetitionSource, find_competition, list_competition
from rsna_dataset import (
    DATASET_INFO,
    FAILED_FILE,
    FORMAT_VERSION,
    IDENTITY_COLUMNS,
    JOURNAL,
    LABELS,
    content_hash,
    dataset_folder,
    fold_path,
    holdout_path,
    identities_of,
    read_dataset_info,
)

logger = logging.getLogger(__name__)

KEY_FILE = "pseudonyms.key"  # in the input folder: beside the datasets, not in them, and the same for all of them
ID_MAP = "id_map_{}.csv"  # beside the key: which file and patient the ids of a dataset stand for
UNMATCHED = "labels_without_image.csv"
UNMATCHED_ROWS = "unmatched_rows.csv"
# What the competition replaced all identifiers by: these stay.
COMPETITION_NAMES = {
    kind: f"ID_[0-9a-f]{{{digits}}}"
    for kind, digits in {"image": 9, "instance": 9, "patient": 8, "study": 10, "series": 10}.items()
}
CROP_SHEET = "crop_sheet.png"
LOOKED_AT = (CROP_SHEET, "audit.html", "verify_failed.csv")  # what is no longer true once the dataset changes
READING_RULES = 2  # of what is a slice and what its HU are; with others all files are read anew
ARCHIVES = (*ARCHIVE_SUFFIXES, *UNREAD_SUFFIXES)
PERSON_FILES = 1000  # at most, read for patients' names alone where no fold depends on them
TABLE_BYTES = 1000  # that an image takes in the tables and the journal, at most
MARKS = {  # of the metadata's column ``mended`` that a person should know of
    "wrap_doubtful": "may hold wrapped values and were left alone",
    REPEATED_UID: "share their SOPInstanceUID with another file; all are kept",
}


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from; ``competition`` is None for files in any other form."""

    tree: Tree
    competition: CompetitionSource | None

    @property
    def kind(self) -> str:
        """``competition``, ``phantom`` or ``dicom``, as in dataset.json."""
        if self.competition is None:
            return "dicom"
        return "phantom" if self.competition.phantom else "competition"


@dataclass(frozen=True)
class Job:
    """What one run works on.

    ``labels`` (index ``id``) are the source's, by its files' ids at first and later by image id; ``label_file`` those
    of --pre_labels (see :func:`rsna.forms.read_label_file`); ``asked`` the ids of the sample submission. ``files``
    are the source's (index ``source_id``: own_id, by_path, file_id, path, split, bytes, mtime_ns and what its tree
    needs), ``refused`` the failures of those that are not opened. ``id_map`` is the table that says what the ids
    stand for.
    """

    config: PreprocessingConfig
    folder: Path
    form: ImageForm
    source: Source
    pseudonyms: Pseudonyms
    labels: pd.DataFrame
    label_file: pd.DataFrame | None
    asked: pd.Index
    files: pd.DataFrame
    refused: pd.DataFrame
    id_map: IdMap

    @property
    def fold_paths(self) -> list[Path]:
        """The files of the folds, and of the rows held out of all of them."""
        name, folds = self.config.data_dataset, self.config.pre_folds
        paths = [fold_path(self.folder, name, fold) for fold in range(folds)]
        return paths + [holdout_path(self.folder, name)] * (folds > 1 and self.config.pre_holdout > 0)


def preprocess(config: PreprocessingConfig, look_at: Callable[[Path], None] | None = None) -> Path:
    """Make or finish the dataset that ``config`` asks for and return its folder.

    ``look_at`` is called with the folder once all is written, also where too many files failed: that is when a look at
    it is needed.

    Raises UsageError where there is no data or the folder can't be written, WorkError for labels that contradict each
    other, a full disk, a source of which nothing can be used, and, after all is written, too large a share of failures.
    """
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
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
            for name in (DATASET_INFO, *LOOKED_AT):  # until the end the dataset is not complete
                (folder / name).unlink(missing_ok=True)
            remove_temporaries(folder)
            convert(job, tasks, journal)
            records = journal.read()
            job = replace(job, files=named_by_path(job.files, records))
            again = misnamed(job.files, records, job.pseudonyms)
            if len(again):
                tell(f"{len(again)} files share their SOPInstanceUID with others; their ids come from their paths")
                convert(job, tasks_of(job, job.files.loc[again]), journal)
                records = journal.read()
            write_tables(job, records, state)
        if look_at is not None:
            look_at(folder)
        check_share(journal.read(), job)
    return folder


def key_place(config: PreprocessingConfig) -> Path:
    """Return the file of the key: --pseudonym_key, else beside ``datasets/``, and never within it."""
    place = config.pseudonym_key or config.data_input_folder / KEY_FILE
    if (config.data_input_folder / "datasets").resolve() in place.resolve().parents:
        raise UsageError(f"--pseudonym_key={place}: lies among the datasets, which are passed on without it")
    return place


def private_files(key_file: Path) -> list[Path]:
    """Return the key and the maps beside it, which are no part of any source."""
    return [key_file, *key_file.parent.glob(ID_MAP.format("*"))]


def find_source(config: PreprocessingConfig) -> Source:
    """Return where the files lie; UsageError saying what was looked for where there are none."""
    searched = config.pre_source or config.data_input_folder
    if config.pre_source is not None and not config.pre_source.exists():
        raise UsageError(
            f"--pre_source={config.pre_source}: no such folder, archive or file{nearest_file(config.pre_source)}"
        )
    competition = find_competition(searched)
    if competition is not None:
        return Source(competition.tree, competition)
    tree = None if config.pre_source is None else open_tree(searched)
    if tree is None:
        archives = sorted(path.name for path in searched.glob("*.*") if path.name.casefold().endswith(ARCHIVES))
        packed = f"; unpack what lies there as {list_some(archives)}, if it is that" if archives else ""
        raise UsageError(
            f"{searched}: no competition data here or in {COMPETITION_FOLDER}/ or {COMPETITION_FOLDER}.zip (expected "
            "stage_2_train/*.dcm and stage_2_train.csv, or stage_1_train_images/ and stage_1_train.csv)"
            f"{packed}; for files of your own name their folder or archive with --pre_source; for synthetic data run "
            "python rsna_phantom.py, then python preprocessing.py --pre_source=input/phantom --data_dataset=phantom"
        )
    return Source(tree, None)


@dataclass(frozen=True)
class Tables:
    """The CSVs of a job: ``labels`` of the source, ``label_file`` that of --pre_labels in their place, ``asked``: the
    ids of the sample submission. As in :class:`Job`.
    """

    labels: pd.DataFrame
    label_file: pd.DataFrame | None
    asked: pd.Index


def read_tables(source: Source, config: PreprocessingConfig) -> Tables:
    """Read labels and sample submission of a source; the errors of the functions that read them."""
    competition = source.competition
    labels = pd.DataFrame(index=pd.Index([], name="id"))
    if competition is not None and config.pre_labels is None:
        labels = read_competition_labels(competition.train_csv)
    sample = None if competition is None else competition.sample_submission
    asked = pd.Index([]) if sample is None else read_submission(sample).index
    return Tables(labels, None if config.pre_labels is None else read_label_file(config.pre_labels), asked)


def build_job(
    config: PreprocessingConfig, folder: Path, source: Source, tables: Tables, key_file: Path, key: bytes
) -> Job:
    """List the source and put together what a run works on; UsageError for a source without files or labels of none."""
    pseudonyms = Pseudonyms(key, COMPETITION_NAMES if source.competition else {})
    files, refused = list_source(source, pseudonyms, skip=(folder.parent, *private_files(key_file)))
    if files.empty and refused.empty:
        raise UsageError(f"{config.pre_source or config.data_input_folder}: holds no files")
    id_map = IdMap(key_file.with_name(ID_MAP.format(config.data_dataset)))
    label_file = tables.label_file
    if label_file is not None:
        label_file = located_labels(config, label_file, source, files["path"])
    form = image_form(config)
    return Job(
        config, folder, form, source, pseudonyms, tables.labels, label_file, tables.asked, files, refused, id_map
    )


def located_labels(
    config: PreprocessingConfig, label_file: pd.DataFrame, source: Source, paths: pd.Series
) -> pd.DataFrame:
    """Return the labels with the source's paths in place of absolute ones; say what was matched, and what wasn't.

    Raises UsageError, before anything is converted, where all keys are paths and none of them is a file's.
    """
    try:
        located = locate_labels(label_file, paths, source.tree.root)
    except WorkError as error:
        raise WorkError(f"{config.pre_labels}: {error}") from None
    if len(located.by_tail):
        tell(
            f"{config.pre_labels}: {len(located.by_tail)} paths are those of files by their ends "
            f"(rows {list_some(map(str, located.by_tail))})"
        )
    if len(located.lost) == len(label_file):
        raise UsageError(
            f"{config.pre_labels}: none of its {len(label_file)} keys is the path of a file in {source.tree.root}, nor "
            f"a UID (rows {list_some(map(str, located.lost))}); write each path as it is below that folder, as in "
            f"case1/IM0001.dcm, or name the folder that they begin in by --pre_source; nothing was converted"
        )
    if len(located.lost):
        tell(
            f"{config.pre_labels}: {len(located.lost)} paths are of no file in {source.tree.root} (rows "
            f"{list_some(map(str, located.lost))})"
        )
    return located.table


def image_form(config: PreprocessingConfig) -> ImageForm:
    """Return the form of the stored images that the options ask for."""
    windows = config.pre_window or ()
    dtype = "int16" if not windows else "uint8" if config.pre_type == "uint8" else "float32"
    return ImageForm(config.pre_size, windows, dtype, config.pre_format, config.pre_crop == "head")


def journal_options(job: Job) -> dict[str, Any]:
    """Return what an image and its record depend on beside its file: with another value all are made anew."""
    names = {"key": job.pseudonyms.fingerprint, "names": dict(job.pseudonyms.public)}
    return form_options(job.form) | names | {"rules": READING_RULES}


def form_options(form: ImageForm) -> dict[str, Any]:
    """Return what the pictures depend on beside their files."""
    return {"version": FORMAT_VERSION} | dataclasses.asdict(form)


def dataset_options(config: PreprocessingConfig) -> dict[str, Any]:
    """Return the options that a dataset depends on, as they stand in dataset.json; not where its source lay."""
    names = (
        "pre_folds",
        "pre_holdout",
        "pre_group",
        "pre_size",
        "pre_window",
        "pre_type",
        "pre_format",
        "pre_crop",
        "seed",
    )
    return {name: value for name, value in to_dict(config).items() if name in names}


def list_source(source: Source, pseudonyms: Pseudonyms, skip: Sequence[Path] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the files to convert, and rows of failed.csv for those that are refused; see :class:`Job`.

    Both are sorted, so that nothing depends on the order in which the disk lists them. ``skip``: files and folders that
    are this program's own.
    """
    if source.competition is None:
        files, refused = (
            table.assign(file_id=[stem(path) for path in table["path"]]) for table in source.tree.list(skip=skip)
        )
        files["split"] = ""
    else:
        files, refused = list_competition(source.competition)
    once = ~files["file_id"].duplicated(keep=False)
    files["own_id"] = [
        name if stays and pseudonyms.is_public(IMAGE, name) else ""
        for name, stays in zip(files["file_id"], once, strict=True)
    ]
    files["by_path"] = False
    refused["own_id"] = [name if pseudonyms.is_public(IMAGE, name) else "" for name in refused["file_id"]]
    # In the journal a file is known by its own id, else by a pseudonym of its path; in failed.csv too.
    for table, name in ((files, "source_id"), (refused, "id")):
        table[name] = [
            own or pseudonyms.of(FILE, path) for own, path in zip(table["own_id"], table["path"], strict=True)
        ]
    return files.set_index("source_id"), failure_rows(refused)


def source_hash(job: Job) -> str:
    """Return a hash of the source's state: names, sizes and times of all files, contents of the CSVs."""
    competition = job.source.competition
    # With the key, nobody can try out which names of patients' files give the hash.
    digest = hashlib.blake2b(digest_size=16, key=b"" if competition else job.pseudonyms.key)
    refused = pd.DataFrame(
        {"id": [printable(name) for name in job.refused["file_id"]],
         "file": [printable(path) for path in job.refused["file"]]} | dict(job.refused[["reason", "message"]].items())
    )  # fmt: skip
    for table in (job.files[["path", "split", "bytes", "mtime_ns"]], refused):
        digest.update(table.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogateescape"))
    tables = (competition.train_csv, competition.sample_submission) if competition else ()
    for path in (*tables, job.config.pre_labels):
        digest.update(path.read_bytes() if path else b"")
    return digest.hexdigest()


def pending_tasks(job: Job, journal: Journal) -> list[Task]:
    """Return what is left to convert: all but files that are as the journal knows them and whose images are whole."""
    records = journal.read()
    files = named_by_path(job.files, records)
    stored = list_files(job.folder / "images", job.form.suffix).set_index("name")["bytes"]
    whole = records["image_bytes"] == stored.reindex(records["image_id"]).to_numpy()
    whole &= ~records["image_id"].isin(unexplained(job, records))
    # A file that could not be opened or parsed gets another try: it may have been the disk.
    hopeless = ~records["reason"].isin(("", *RETRIED_REASONS))
    finished = ((whole & (records["reason"] == "")) | hopeless).groupby(records["source_id"]).all()
    known = records.drop_duplicates("source_id").set_index("source_id")[["split", "file_bytes", "mtime_ns"]]
    known = known[known.index.isin(files.index)].astype({"split": object})
    current = files.loc[known.index]
    same = (known["split"] == current["split"]) & (known["file_bytes"] == current["bytes"])
    same &= known["mtime_ns"] == current["mtime_ns"]
    if journal.exists() and records.empty:
        if source_names_ids(job, journal.options()):
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


def unexplained(job: Job, records: pd.DataFrame) -> pd.Index:
    """Return the images that need a row in the map of ids and have none, as where it was lost."""
    images = records[records["reason"] == ""].drop_duplicates("image_id").set_index("image_id")
    needed = need_rows(images)
    if not needed.any():
        return pd.Index([])
    missing = needed.index[needed].difference(job.id_map.read().index)
    if len(missing):
        tell(f"{job.id_map.path}: has no row for {len(missing)} images; their files are read again")
    return missing


def source_names_ids(job: Job, options: dict[str, Any]) -> bool:
    """Whether a journal of these options is of before ids were keyed hashes outside the competition's folders."""
    return job.source.competition is None and "public" in options


def tasks_of(job: Job, files: pd.DataFrame) -> list[Task]:
    """Return what converts these rows of the job's files."""
    return file_tasks(job.source.tree, files, job.folder / "images")


def file_tasks(tree: Tree, files: pd.DataFrame, folder: Path | None) -> list[Task]:
    """Return what converts these rows of :func:`list_source` to images in ``folder``; None: they are only read."""
    return [
        Task(row.own_id, row.Index, row.split, row.bytes, row.mtime_ns, tree.file_at(row), folder, row.by_path)
        for row in files.itertuples()
    ]


def warn_of_other_source(job: Job) -> None:
    """Warn where a dataset of the same name was made from a phantom and is now made from real data, or vice versa."""
    try:
        made_from = read_dataset_info(job.folder)["source"]["kind"]
    except (UsageError, WorkError, KeyError, TypeError):
        return  # there is none, or none that was finished
    if made_from != job.source.kind:
        logger.warning(
            "%s: was made from %s files and is made anew from %s files", job.folder, made_from, job.source.kind
        )


def is_complete(job: Job, state: str) -> bool:
    """Whether the dataset was finished from the same source with the same options, and its tables are there."""
    try:
        info = read_dataset_info(job.folder)
        same = info["options"] == dataset_options(job.config) and info["source"]["hash"] == state
    except (UsageError, WorkError, KeyError, TypeError):
        return False
    paths = [job.folder / name for name in ("metadata.csv", FAILED_FILE, label_report(job))]
    paths += [job.folder / CROP_SHEET] * job.form.crop
    paths += [job.id_map.path] * ("pseudonyms" in info)
    paths += [job.folder / "sample_submission.csv"] * (len(job.asked) > 0) + job.fold_paths * (info["labelled"] > 0)
    return same and all(path.is_file() for path in paths)


def check_persons(job: Job) -> None:
    """Say, before anything is converted, where the files name fewer patients than are needed.

    Anonymized archives often have one PatientID for all. UsageError where there are labels and so folds are asked for,
    else a warning.
    """
    config = job.config
    labelled, by_study = is_labelled(job), config.pre_group == "study"
    wanted = config.pre_folds + (config.pre_holdout > 0) if labelled else 2
    persons, studies = find_persons(
        tasks_of(job, job.files), wanted, by_study=by_study, most_files=None if labelled else PERSON_FILES
    )
    if persons >= wanted or persons == 0:  # none: the conversion says why no file can be read
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
    """Convert what is pending, noting each chunk of files in the journal as it is finished."""
    stored = list_files(job.folder / "images", job.form.suffix).set_index("name")["bytes"]
    replaced = [task.own_id for task in tasks]
    if "" in replaced:
        records = journal.read()
        replaced = records["image_id"][records["source_id"].isin([task.source_id for task in tasks])]
    freed = int(stored.reindex(replaced).sum())
    # Not for what lies there: a backup or a film beside the slices writes nothing.
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


def write_tables(job: Job, records: pd.DataFrame, state: str) -> None:
    """Write everything but the images, dataset.json last; WorkError for no image, or labels of which none fits."""
    folder = job.folder
    records = records[records["source_id"].isin(job.files.index)]
    images = mark_repeated(unique_images(records).sort_index())
    failed = failure_table(records, job.files, job.refused)
    write_csv(folder / FAILED_FILE, shown(failed))
    write_id_map(job, images, failed)
    job, images, unmatched = label_images(job, images, failed)
    images = images.assign(group_id=make_groups(job, images))
    table = metadata_table(images, job.labels, file_order(job.files, images))
    if job.label_file is not None:
        unlabelled = np.flatnonzero((table["split"] == "test").to_numpy()) + 2
        unmatched = pd.concat(
            [unmatched.assign(table="labels"), pd.DataFrame({"row": unlabelled, "table": "metadata"})]
        )[["table", "row"]]
    write_csv(folder / label_report(job), unmatched)
    warn_about(job, images, failed, unmatched)
    say_geometry(table)
    singles = describe_singles(table)
    if singles:
        logger.warning("%s", singles)
    train = images[(images["split"] == "train") & images.index.isin(job.labels.index)]
    if images.empty or (train.empty and is_labelled(job)):
        raise WorkError(
            f"{folder}: none of the {len(job.files)} files gave an image{' with labels' * is_labelled(job)}; "
            f"{folder / FAILED_FILE} and {folder / label_report(job)} say why"
        )
    fold_paths = job.fold_paths if len(train) else []
    fold = make_folds(job, train) if len(train) else np.zeros(0, dtype=np.int64)
    remove_leftovers(folder, images.index + job.form.suffix, fold_paths)
    write_csv(folder / "metadata.csv", table)
    del table  # of a million images: 300 MB
    rows = train.join(job.labels).reindex(columns=[*LABELS, *IDENTITY_COLUMNS])  # no labels: no rows either
    for path, part in zip(fold_paths, fold_tables(rows, fold, job.config.pre_folds), strict=False):
        write_csv(path, part.rename_axis("id"), index=True)
    copy_sample(job, images)
    if job.form.crop:
        chosen = choose_images(images)
        files = job.files.loc[images.loc[chosen, "source_id"].unique()]
        write_crop_sheet(folder / CROP_SHEET, tasks_of(job, files), chosen, job.pseudonyms)
    write_json(folder / DATASET_INFO, dataset_info(job, images, failed, state))
    counts = images["split"].value_counts()
    other = int(is_no_slice(failed).sum())
    said = [f"{counts.get('train', 0)} train and {counts.get('test', 0)} test images"]
    said += [f"{len(failed) - other} failed files", f"{other} that are no slices"]
    if len(train):
        said.append(", ".join(f"{name} {share:.2%}" for name, share in rows[list(LABELS)].mean().items()))
    tell("; ".join(said))


def write_id_map(job: Job, images: pd.DataFrame, failed: pd.DataFrame) -> None:
    """Put the map of ids in order: a row for each id that was made here, of an image or of a file that gave none."""
    needed = need_rows(images)
    rows = job.id_map.read()
    rows = rows[rows.index.isin(needed.index[needed])].reset_index()
    rows = pd.concat([rows, file_rows(failed)], ignore_index=True)
    job.id_map.finish(rows)
    if len(rows):
        tell(f"{job.id_map.path}: which file and patient each id stands for; for you alone, as the key beside it")


def file_order(files: pd.DataFrame, images: pd.DataFrame) -> np.ndarray:
    """Return what to order slices of one place by, (N,): their own ids, or the places of their files in the source."""
    files = files.loc[images["source_id"], ["own_id", "path"]]
    return np.array(
        [image_id if own else f"{path}\n{frame:09d}"
         for image_id, own, path, frame in zip(images.index, files["own_id"], files["path"], images["frame"],
                                               strict=True)],
        dtype=object,
    )  # fmt: skip


def is_labelled(job: Job) -> bool:
    """Whether the source or --pre_labels has labels, whatever they fit."""
    return job.label_file is not None or job.source.competition is not None


def label_report(job: Job) -> str:
    """Return the name of the file that lists which labels fit no image."""
    return UNMATCHED if job.label_file is None else UNMATCHED_ROWS


def label_images(job: Job, images: pd.DataFrame, failed: pd.DataFrame) -> tuple[Job, pd.DataFrame, pd.DataFrame]:
    """Return the job with its labels by image id, the images with their split, and the labels that fit no image.

    The competition's folders say which images are for training; elsewhere it is those that have labels.
    """
    if job.label_file is not None:
        joined = join_labels(job.label_file, images, job.files["path"], job.pseudonyms)
        labels, unmatched = joined.labels, joined.unmatched
    else:
        file_id = job.files["file_id"].reindex(images["source_id"]).to_numpy()
        labelled = pd.Index(file_id).isin(job.labels.index)  # numpy compares every pair of objects
        labels = job.labels.loc[file_id[labelled]].set_axis(images.index[labelled])
        without = job.labels.index.difference(pd.Index(file_id))
        unmatched = unmatched_labels(without, failed.assign(id=failed["file_id"]))
        unmatched["id"] = shown_ids(job, images, unmatched["id"])
    if job.source.competition is None:
        images = images.assign(split=np.where(images.index.isin(labels.index), "train", "test"))
    return replace(job, labels=labels), images, unmatched


def shown_ids(job: Job, images: pd.DataFrame, names: pd.Index | pd.Series) -> list[str]:
    """Return the images' ids for the names that the competition's tables give them: the same, or keyed hashes."""
    file_ids = job.files["file_id"].reindex(images["source_id"])
    made = dict(zip(file_ids, images.index, strict=True))
    return [name if job.pseudonyms.is_public(IMAGE, name) else made.get(name) or job.pseudonyms.of(FILE, name)
            for name in names]  # fmt: skip


def check_share(records: pd.DataFrame, job: Job) -> None:
    """Raise WorkError, with the reasons counted, where more files failed than --pre_max_failed accepts.

    What is no slice never counts.
    """
    failed = failure_table(records, job.files, job.refused)
    count, total = failed_share(failed, len(job.files) + len(job.refused))
    if count > job.config.pre_max_failed * total:
        raise WorkError(
            f"{too_many_failed(count, total, job.config.pre_max_failed)}: "
            f"{count_reasons(failed[~is_no_slice(failed)].drop_duplicates('file'))}; the dataset is complete without "
            f"them; see {job.folder / FAILED_FILE}"
        )


def failed_share(failed: pd.DataFrame, files: int) -> tuple[int, int]:
    """Return how many files failed and of how many, without those that are no slices; ``files``: all that there are."""
    other = is_no_slice(failed)
    failed, other = failed[~other].drop_duplicates("file"), failed[other].drop_duplicates("file")
    # A file counts once, however many frames it has, and only where all that failed of it is no slice it doesn't.
    return len(failed), files - int((~other["file"].isin(failed["file"])).sum())


def too_many_failed(count: int, files: int, accepted: float) -> str:
    """Return what is said of more failures than are ``accepted``, with the value that would accept them."""
    enough = math.ceil(100 * count / files) / 100
    return (
        f"{count} of {files} files failed ({count / files:.2%}), more than --pre_max_failed={accepted:g} accepts "
        f"(--pre_max_failed={enough:g} would)"
    )


def record_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return records as a table of what may be kept of them."""
    return pd.DataFrame([[getattr(record, name) for name in KEPT] for record in records], columns=list(KEPT))


def dataset_info(job: Job, images: pd.DataFrame, failed: pd.DataFrame, state: str) -> dict[str, Any]:
    """Return what dataset.json says; ``hash``: of all that training sees, ``source.hash``: of what it was made from."""
    options = dataset_options(job.config)
    competition = job.source.competition
    return {
        "format_version": FORMAT_VERSION,
        "source": {"kind": job.source.kind, "stage": competition.stage if competition else None, "hash": state},
        "options": options,
        "image_form": job.form.name,
        "windows": options["pre_window"],
        "dtype": job.form.dtype,
        "format": job.form.file_format,
        "images": {split: int((images["split"] == split).sum()) for split in ("train", "test")},
        "labelled": int(images.index.isin(job.labels.index).sum()),
        "failed": len(failed),
        "hash": content_hash(job.folder, options),
    } | whose_pseudonyms(job, images)


def whose_pseudonyms(job: Job, images: pd.DataFrame) -> dict[str, str]:
    """Return for dataset.json which key made the pseudonyms; nothing where all names are the competition's own."""
    return {"pseudonyms": job.pseudonyms.fingerprint} if need_rows(images).any() else {}


def warn_about(job: Job, images: pd.DataFrame, failed: pd.DataFrame, unmatched: pd.DataFrame) -> None:
    """Warn, with counts, of everything that is not as it should be."""
    other = is_no_slice(failed)
    if other.any():
        tell(f"{int(other.sum())} files are no CT slices and don't count as failures ({count_reasons(failed[other])})")
    archives = int((failed["reason"] == "archive").sum())
    if archives:
        logger.warning("%d archives were not looked into: unpack them beside, and start again", archives)
    if not other.all():
        logger.warning(
            "%d files gave no image (%s); see %s",
            int((~other).sum()), count_reasons(failed[~other]), job.folder / FAILED_FILE,
        )  # fmt: skip
    warn_about_labels(job, images, unmatched)
    missing = pd.Index(shown_ids(job, images, job.asked)).difference(images.index)
    if len(missing):
        logger.warning("%d images of the sample submission have no picture: %s", len(missing), list_some(missing))
    for name, meaning in MARKS.items():
        marked = images.index[[name in mended.split(";") for mended in images["mended"]]]
        if len(marked):
            logger.warning("%d images %s: %s", len(marked), meaning, list_some(marked))
    if images["warnings"].sum():
        logger.warning("pydicom had something to remark on %d files", int((images["warnings"] > 0).sum()))


def say_geometry(table: pd.DataFrame) -> None:
    """Say how many images have an unusual place in their series; ``table``: the metadata."""
    counts = (
        table["geometry"]
        .astype(str)
        .str.split(";")
        .explode()
        .value_counts()
        .drop(["", "single_slice"], errors="ignore")
    )
    if len(counts):
        listing = ", ".join(f"{name} {count}" for name, count in counts.items())
        tell(f"places along the series (the metadata's column geometry): {listing}")


def warn_about_labels(job: Job, images: pd.DataFrame, unmatched: pd.DataFrame) -> None:
    """Warn of labels without image and of images without label."""
    if not is_labelled(job):
        logger.warning("%s: unlabelled: no label columns and no folds; --pre_labels=file.csv adds labels", job.folder)
    elif job.label_file is not None:
        counts = unmatched["table"].value_counts()
        if len(unmatched):
            logger.warning(
                "%d rows of %s fit no image, and %d images have no labels (split test); see %s",
                counts.get("labels", 0), job.config.pre_labels, counts.get("metadata", 0), job.folder / UNMATCHED_ROWS,
            )  # fmt: skip
    else:
        if len(unmatched):
            logger.warning(
                "%d labelled images have no picture and are left out: %s; see %s",
                len(unmatched), list_some(unmatched["id"]), job.folder / UNMATCHED,
            )  # fmt: skip
        unlabelled = images.index[(images["split"] == "train") & ~images.index.isin(job.labels.index)]
        if len(unlabelled):
            logger.warning(
                "%d training images have no labels in %s and are in no fold: %s",
                len(unlabelled), job.source.competition.train_csv, list_some(unlabelled),
            )  # fmt: skip


def make_groups(job: Job, images: pd.DataFrame) -> np.ndarray:
    """Return the group of each image (index ``image_id``); say what joins patients, and what looks like no patient."""
    identities = identities_of(images.rename(columns={"digest": "picture_hash"}), job.config.pre_group)
    groups = group_images(identities)
    lines = describe_links(identities)
    if "study" in lines:
        logger.warning("%s; each with all its patients stays together", lines["study"])
    if "picture" in lines:
        tell(lines["picture"])
    large = large_group(groups, identities)
    if large is not None:
        name, studies, share = large
        logger.warning(
            "%.0f %% of the images, of %d studies, are one group (%s): if that PatientID stands for many patients, "
            "--pre_group=study takes each study for a patient",
            100 * share, studies, name,
        )  # fmt: skip
    return groups


def make_folds(job: Job, train: pd.DataFrame) -> np.ndarray:
    """Return the fold of each training image (index ``image_id``, sorted; with its ``group_id``), checked."""
    groups = train["group_id"].to_numpy(dtype=object)
    labels = job.labels.loc[train.index, list(LABELS)].to_numpy()
    studies = group_images(identities_of(train, "study"))
    check_parts(job.config.pre_folds, job.config.pre_holdout, len(set(groups)), len(set(studies)))
    fold = assign_folds(groups, labels, job.config.pre_folds, job.config.seed, job.config.pre_holdout)
    check_folds(fold, groups, identities_of(train.rename(columns={"digest": "picture_hash"}), job.config.pre_group))
    return fold


def copy_sample(job: Job, images: pd.DataFrame) -> None:
    """Copy the sample submission to the dataset, which then needs nothing of the source; names that don't stay go."""
    target = job.folder / "sample_submission.csv"
    competition = job.source.competition
    if competition is None or competition.sample_submission is None:
        target.unlink(missing_ok=True)
        return
    if all(job.pseudonyms.is_public(IMAGE, name) for name in job.asked):
        with atomic_path(target) as temporary:
            temporary.write_bytes(competition.sample_submission.read_bytes())
        return
    ids = dict(zip(job.asked, shown_ids(job, images, job.asked), strict=True))
    rows = read_submission_texts(competition.sample_submission)
    parts = [name.rpartition("_") for name in rows["ID"]]
    write_csv(target, rows.assign(ID=[f"{ids[part[0]]}_{part[2]}" for part in parts]))
