"""Find what a dataset is made from: files, tables of labels, and the key of the pseudonyms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common.cli.choices import load
from common.cli.console import tell
from common.errors import UsageError, WorkError, list_some, nearest_file
from common.preprocessing.archives import ARCHIVE_SUFFIXES, UNREAD_SUFFIXES
from common.preprocessing.failures import failure_rows
from common.preprocessing.labels import locate_labels
from common.preprocessing.pseudonyms import FILE, IMAGE, Pseudonyms
from common.preprocessing.sources import Tree, open_tree, stem
from rsna.forms import read_competition_labels, read_label_file, read_submission
from rsna.prepare.adapters.table import ADAPTERS, PublishedLabels
from rsna.prepare.competition import COMPETITION_FOLDER, CompetitionSource, find_competition, list_competition
from rsna.prepare.options import PreprocessingConfig

KEY_FILE = "pseudonyms.key"  # in the input folder: one key for all datasets, outside all of them
ID_MAP = "id_map_{}.csv"  # beside the key: the file and patient behind each id of a dataset
COMPETITION_NAMES = {  # patterns of the competition's own pseudonyms, which are kept
    kind: f"ID_[0-9a-f]{{{digits}}}"
    for kind, digits in {"image": 9, "instance": 9, "patient": 8, "study": 10, "series": 10}.items()
}
ARCHIVES = (*ARCHIVE_SUFFIXES, *UNREAD_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """The files that a dataset is made from. ``competition`` is None for any other DICOM files."""

    tree: Tree
    competition: CompetitionSource | None

    @property
    def kind(self) -> str:
        """``competition``, ``phantom`` or ``dicom``, as in dataset.json."""
        if self.competition is None:
            return "dicom"
        return "phantom" if self.competition.phantom else "competition"


def key_place(config: PreprocessingConfig) -> Path:
    """Return the key's path: --pseudonym_key, else beside ``datasets/``. UsageError if it is inside ``datasets/``."""
    place = config.pseudonym_key or config.data_input_folder / KEY_FILE
    if (config.data_input_folder / "datasets").resolve() in place.resolve().parents:
        raise UsageError(f"--pseudonym_key={place}: lies among the datasets, which are passed on without it")
    return place


def private_files(key_file: Path) -> list[Path]:
    """Return the paths of the key and of the maps of ids beside it. They are never a source's files."""
    return [key_file, *key_file.parent.glob(ID_MAP.format("*"))]


def find_source(config: PreprocessingConfig) -> Source:
    """Return the source that the options name. If nothing is found, raise UsageError that says what is expected."""
    searched = config.pre_source or config.data_input_folder
    if config.pre_source is not None and not config.pre_source.exists():
        raise UsageError(
            f"--pre_source={config.pre_source}: no such folder, archive or file{nearest_file(config.pre_source)}"
        )
    competition = find_competition(searched)
    if config.pre_dataset is not None and (competition is not None or not searched.is_dir()):
        raise UsageError(f"--pre_dataset={config.pre_dataset}: {searched} is not the folder of that dataset, unpacked")
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
    """The contents of the CSVs: the source's ``labels``, the ``label_file`` of --pre_labels (None without).

    ``asked`` holds the image ids of the sample submission.
    """

    labels: pd.DataFrame
    label_file: pd.DataFrame | None
    asked: pd.Index


def read_tables(source: Source, config: PreprocessingConfig) -> Tables:
    """Read a source's labels and sample submission. Raise the errors of the functions of :mod:`rsna.forms`."""
    competition = source.competition
    labels = pd.DataFrame(index=pd.Index([], name="id"))
    if competition is not None and config.pre_labels is None:
        labels = read_competition_labels(competition.train_csv)
    sample = None if competition is None else competition.sample_submission
    asked = pd.Index([]) if sample is None else read_submission(sample).index
    return Tables(labels, None if config.pre_labels is None else read_label_file(config.pre_labels), asked)


def published_labels(config: PreprocessingConfig, source: Source, paths: pd.Series) -> PublishedLabels | None:
    """Return the labels of the dataset that --pre_dataset names, and tell of them; None without it."""
    if config.pre_dataset is None:
        return None
    adapter = ADAPTERS[config.pre_dataset]
    found: PublishedLabels = load(adapter.path)(source.tree.root, list(paths))
    for line in (*found.said, f"licence: {adapter.licence}", f"overlap with other datasets: {adapter.overlap}"):
        tell(f"{adapter.name}: {line}")
    return found


def located_labels(
    config: PreprocessingConfig, label_file: pd.DataFrame, source: Source, paths: pd.Series
) -> pd.DataFrame:
    """Return the labels with each path written as in the source. Report paths matched by their ends, and lost paths.

    Raises UsageError if all keys are paths and none names a file.
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


def list_source(source: Source, pseudonyms: Pseudonyms, skip: Sequence[Path] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the files to convert and, as rows of failed.csv, the refused files. :class:`Job` names the columns.

    Both are sorted, so that the result doesn't depend on the order in which the disk lists files. ``skip`` names files
    and folders that this program wrote.
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
    # The journal and failed.csv identify a file by its own id, or else by a pseudonym of its path.
    for table, name in ((files, "source_id"), (refused, "id")):
        table[name] = [
            own or pseudonyms.of(FILE, path) for own, path in zip(table["own_id"], table["path"], strict=True)
        ]
    return files.set_index("source_id"), failure_rows(refused)
