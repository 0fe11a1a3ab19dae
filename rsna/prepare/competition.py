"""Find the competition's files in a folder or a zip archive: DICOM images, train CSV, sample submission."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.csv_tables import IMAGE_ID
from common.preprocessing.sources import SourceFile, Tree, open_tree
from rsna_dataset import TRUTH_FILE

COMPETITION_FOLDER = "rsna-intracranial-hemorrhage-detection"


@dataclass(frozen=True)
class CompetitionSource:
    """Where the competition's files lie in ``tree``: the names of the image folders, and the CSVs as files to open.

    ``test_images`` and ``sample_submission`` are both None if either is missing. ``phantom`` is True for synthetic
    files.
    """

    tree: Tree
    stage: int
    train_images: str
    train_csv: SourceFile
    test_images: str | None
    sample_submission: SourceFile | None
    phantom: bool


def find_competition(path: Path) -> CompetitionSource | None:
    """Find the competition's files in ``path``, a folder or zip archive, or in :data:`COMPETITION_FOLDER` there.

    A folder may also hold the archive ``<COMPETITION_FOLDER>.zip``. Folders may have their present names on Kaggle
    (``stage_2_train``) or those of 2019 (``stage_1_train_images``). If there are several stages, the highest one with
    both images and CSV is used. Returns None if there are no training images with labels. Raises UsageError for a
    damaged archive.
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
    """Return two tables: the image files, sorted by split and id, and the refused files.

    The first has the columns path, file_id, split, bytes, mtime_ns and those that the tree needs. The second has path,
    file_id, reason and message. A file is refused if its name is no id, or if it is a test image with the id of a
    training image.
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
