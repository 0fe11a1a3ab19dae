"""The job of one run of preprocessing.py: its source, files, labels and options."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from common.cli.arguments import to_dict
from common.errors import UsageError
from common.preprocessing.id_map import IdMap
from common.preprocessing.pseudonyms import FILE, IMAGE, Pseudonyms
from common.preprocessing.records import ImageForm, Task
from common.preprocessing.sources import Tree, printable
from rsna.prepare.adapters.table import PublishedLabels
from rsna.prepare.options import PreprocessingConfig
from rsna.prepare.source import (
    COMPETITION_NAMES,
    ID_MAP,
    Source,
    Tables,
    list_source,
    located_labels,
    private_files,
    published_labels,
)
from rsna_dataset import FORMAT_VERSION, IMAGE_OPTIONS, fold_path, holdout_path

UNMATCHED = "labels_without_image.csv"
UNMATCHED_ROWS = "unmatched_rows.csv"
DATASET_OPTIONS = {
    *IMAGE_OPTIONS,
    "pre_folds",
    "pre_holdout",
    "pre_group",
    "pre_format",
    "pre_demographics",
    "pre_series",
    "pre_dataset",
    "seed",
}
READING_RULES = 2  # raise it if a change makes other files CT slices, or gives other HU: all files are then read again


@dataclass(frozen=True)
class Job:
    """All that one run works on.

    ``files`` has a row for each file: index ``source_id``, columns own_id, by_path, file_id, path, split, bytes,
    mtime_ns, and those that the source's tree needs.
    """

    config: PreprocessingConfig
    folder: Path
    form: ImageForm
    source: Source
    pseudonyms: Pseudonyms
    labels: pd.DataFrame  # of the source; indexed by file ids at first, later by image ids
    label_file: pd.DataFrame | None  # of --pre_labels or --pre_dataset, see rsna.forms.read_label_file
    asked: pd.Index  # ids of the sample submission
    files: pd.DataFrame
    refused: pd.DataFrame  # files that are not opened, as rows of failed.csv
    id_map: IdMap  # which file and patient each id stands for
    published: PublishedLabels | None = None  # of --pre_dataset; its table is the label file

    @property
    def fold_paths(self) -> list[Path]:
        """Paths of the CSVs of the folds and of the images held out of all folds."""
        name, folds = self.config.data_dataset, self.config.pre_folds
        paths = [fold_path(self.folder, name, fold) for fold in range(folds)]
        return paths + [holdout_path(self.folder, name)] * (folds > 1 and self.config.pre_holdout > 0)


def build_job(
    config: PreprocessingConfig, folder: Path, source: Source, tables: Tables, key_file: Path, key: bytes
) -> Job:
    """List the source's files and build the job. Raise UsageError if there are no files, or none with labels."""
    pseudonyms = Pseudonyms(key, COMPETITION_NAMES if source.competition else {})
    files, refused = list_source(
        source,
        pseudonyms,
        skip=(folder.parent, *private_files(key_file), *[config.pre_masks] * (config.pre_masks is not None)),
    )
    if files.empty and refused.empty:
        raise UsageError(f"{config.pre_source or config.data_input_folder}: holds no files")
    id_map = IdMap(key_file.with_name(ID_MAP.format(config.data_dataset)))
    label_file = tables.label_file
    published = published_labels(config, source, files["path"])
    if published is not None:
        label_file = published.table
    elif label_file is not None:
        label_file = located_labels(config, label_file, source, files["path"])
    labels, asked, form = tables.labels, tables.asked, image_form(config)
    return Job(config, folder, form, source, pseudonyms, labels, label_file, asked, files, refused, id_map, published)


def image_form(config: PreprocessingConfig) -> ImageForm:
    """Return the form of the images to store, from the options."""
    windows = config.pre_window or ()
    dtype = "int16" if not windows else "uint8" if config.pre_type == "uint8" else "float32"
    return ImageForm(
        config.pre_size, windows, dtype, config.pre_format, config.pre_crop == "head", config.pre_demographics
    )


def journal_options(job: Job) -> dict[str, Any]:
    """Return all that images and records depend on besides the files. A change of it converts all files again."""
    names = {"key": job.pseudonyms.fingerprint, "names": dict(job.pseudonyms.public)}
    return {"version": FORMAT_VERSION} | dataclasses.asdict(job.form) | names | {"rules": READING_RULES}


def dataset_options(config: PreprocessingConfig) -> dict[str, Any]:
    """Return the options that a dataset depends on, as dataset.json stores them."""
    return {name: value for name, value in to_dict(config).items() if name in DATASET_OPTIONS}


def tasks_of(job: Job, files: pd.DataFrame) -> list[Task]:
    """Return the tasks that convert ``files``, rows of the job's."""
    return file_tasks(job.source.tree, files, job.folder / "images")


def file_tasks(tree: Tree, files: pd.DataFrame, folder: Path | None) -> list[Task]:
    """Return the tasks that convert ``files`` to images in ``folder``, or only read them if ``folder`` is None.

    ``files`` has the columns that :func:`rsna.prepare.source.list_source` returns.
    """
    return [
        Task(row.own_id, row.Index, row.split, row.bytes, row.mtime_ns, tree.file_at(row), folder, row.by_path)
        for row in files.itertuples()
    ]


def is_labelled(job: Job) -> bool:
    """Whether the source, --pre_labels or --pre_dataset gives labels, even if they fit no image."""
    return job.label_file is not None or job.source.competition is not None


def label_report(job: Job) -> str:
    """Return the name of the CSV that lists the labels that fit no image."""
    return UNMATCHED if job.label_file is None else UNMATCHED_ROWS


def label_source(config: PreprocessingConfig) -> str:
    """Return in words where the labels of a job come from."""
    return str(config.pre_labels) if config.pre_dataset is None else f"--pre_dataset={config.pre_dataset}"


def shown_ids(job: Job, images: pd.DataFrame, names: pd.Index | pd.Series) -> list[str]:
    """Return the dataset's id for each of ``names``, image names of the competition's tables.

    A name that is a pseudonym already stays. Any other becomes a keyed hash.
    """
    file_ids = job.files["file_id"].reindex(images["source_id"])
    made = dict(zip(file_ids, images.index, strict=True))
    return [name if job.pseudonyms.is_public(IMAGE, name) else made.get(name) or job.pseudonyms.of(FILE, name)
            for name in names]  # fmt: skip


def source_hash(job: Job) -> str:
    """Return a hash of the source: the names, sizes and times of all files, and the contents of the CSVs."""
    competition = job.source.competition
    # Files' names may name patients. Without the key nobody can guess a name and check it by the hash.
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
