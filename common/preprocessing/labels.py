"""Join the labels of a user's file with images, by path, SOPInstanceUID or StudyInstanceUID."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.cli.console import tell
from common.errors import WorkError
from common.preprocessing.pseudonyms import FILE, IMAGE, Pseudonyms, is_made

LEVEL = "label_level"
OF_STUDY = "study_{}"  # column of a study's label
UID = re.compile(r"[0-9]+(\.[0-9]+)+|[0-9]{20,}")  # some exports write UIDs without points
SUFFIXES = (".gz", ".dcm")  # the path in a label file may have or lack them
NOWHERE, AMBIGUOUS = -1, -2


@dataclass(frozen=True)
class JoinedLabels:
    """Labels of images, and the rows that fit none.

    ``labels``: index ``image_id``, and the columns

    - each label of the image itself, NaN where it is missing
    - ``label_level``: ``image`` for an image with a row of its own, else ``study``
    - :data:`OF_STUDY` of each label, if a row names a study: the label of the image's whole study, NaN where missing.

    ``unmatched``: the rows of the label file (``row``) that belong to no image.
    """

    labels: pd.DataFrame
    unmatched: pd.DataFrame


@dataclass(frozen=True)
class LocatedLabels:
    """Labels whose paths are written as in the source.

    ``table``: the labels, with the source's own path in place of each key that names a file in another way.
    ``by_tail``: numbers of the rows of the label file whose path was matched by its last parts. ``lost``: those whose
    path names no file. A key without folders and ``.dcm`` may be an identifier, so it is never lost.
    """

    table: pd.DataFrame
    by_tail: np.ndarray
    lost: np.ndarray


def locate_labels(table: pd.DataFrame, paths: Sequence[str], root: Path) -> LocatedLabels:
    """Find the files that labels name by an absolute path, or by a path from another folder than the source's.

    ``table`` is that of :func:`join_labels`. ``paths`` are those of all files, relative to the source ``root``. A key
    that is none of them can name a file in two ways:

    - The key ends in the file's path, as ``/data/case1/1.dcm`` does for ``case1/1.dcm``. The longest such path counts.
    - The file's path ends in the key, as ``case1/1.dcm`` does for ``1.dcm``.

    Capitals, ``.dcm`` and ``.gz`` make no difference if that leaves one file. If two keys may name the same file,
    WorkError names their rows. No file is opened.
    """
    keys = table.index.to_numpy(dtype=object, copy=True)
    place = pd.Index(paths, dtype=object).get_indexer(keys)
    exact = place >= 0
    looked_up = [number for number in np.flatnonzero(~exact) if not _is_identifier(keys[number])]
    tails = _Tails([_parts(path) for path in paths]) if looked_up else None
    around = _parts(str(root.absolute()))
    taken = set(place[exact])
    found: dict[int, tuple[int, int]] = {}
    for number in looked_up:
        parts = _parts(keys[number])
        file = tails.find(parts)
        if file < 0 or file in taken:
            continue
        # Of two absolute paths, the one that shares more of the source's own folder counts.
        shared = _shared_tail(parts, around + tails.parts[file])
        other = found.get(file)
        if other is not None and other[1] == shared:
            rows = sorted((int(table["row"].iloc[other[0]]), int(table["row"].iloc[number])))
            raise WorkError(f"row {rows[1]} may name the same file as row {rows[0]}, by the end of its path: write the "
                            "paths as they are below the source")  # fmt: skip
        if other is None or other[1] < shared:
            found[file] = (number, shared)
    for file, (number, _) in found.items():
        place[number] = file
    matched = np.array(sorted(number for number, _ in found.values()), dtype=np.int64)
    keys[matched] = np.asarray(paths, dtype=object)[place[matched]]
    rows = table["row"].to_numpy()
    lost = np.array([number for number in looked_up if place[number] < 0 and _is_path(keys[number])], dtype=np.int64)
    located = table.set_axis(pd.Index(keys, name=table.index.name))
    return LocatedLabels(located, rows[matched], rows[lost])


def _is_identifier(key: str) -> bool:
    """Whether a key is a UID or an id of this project, and so no path."""
    return UID.fullmatch(key) is not None or is_made(IMAGE, key) or is_made(FILE, key)


def _is_path(key: str) -> bool:
    """Whether a key is certainly a path."""
    return "/" in key or key.casefold().endswith(SUFFIXES)


def _parts(path: str) -> tuple[str, ...]:
    """Return a path's folders and name, in lower case and without the suffixes of DICOM files."""
    parts = [part for part in path.casefold().split("/") if part not in ("", ".")]
    for suffix in SUFFIXES:
        parts[-1:] = [part.removesuffix(suffix) for part in parts[-1:]]
    return tuple(parts)


def _shared_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many parts at the end two paths have in common."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


class _Tails:
    """A source's files by their paths, and by the last parts of their paths for shorter keys."""

    def __init__(self, parts: Sequence[tuple[str, ...]]) -> None:
        self.parts = parts
        self.whole = self._by(parts)
        self.by_length: dict[int, dict[tuple[str, ...], int]] = {}

    @staticmethod
    def _by(names: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
        places: dict[tuple[str, ...], int] = {}
        for number, name in enumerate(names):
            places[name] = AMBIGUOUS if name in places else number
        return places

    def find(self, key: tuple[str, ...]) -> int:
        """Return the index of the file that a path names, negative if there is none or several."""
        for start in range(len(key)):  # the longest tail first
            if key[start:] in self.whole:
                return self.whole[key[start:]]
        if len(key) not in self.by_length:
            self.by_length[len(key)] = self._by([parts[-len(key) :] for parts in self.parts])
        return self.by_length[len(key)].get(key, NOWHERE) if key else NOWHERE


def join_labels(
    table: pd.DataFrame,
    images: pd.DataFrame,
    paths: pd.Series,
    pseudonyms: Pseudonyms,
    named: Callable[[str, int], str] | None = None,
    *,
    of_study: bool = False,
) -> JoinedLabels:
    """Give each image the labels of its path, else of its SOPInstanceUID, else of its id here, and those of its study.

    A study's label says of an image only what is certain: 0 means 0 in each of its images. From 1 follows nothing for a
    single image, whose label is then missing. An image's own label counts more than its study's. If it is 1, so is its
    study's, and the user is told where that stood as 0. An image without any label, own or of its study, gets no row.

    ``table``: index ``key``, a column for each label and ``row``. ``images``: records of the journal (index
    ``image_id``) with the pseudonyms source_id, instance_id and study_id. ``paths``: those of the source's files by
    source_id. The keys become pseudonyms like the images' identifiers and are then compared, so that no identifier is
    written. ``named``: (path, frame) → the key of an image, or with ``of_study`` of its study, where the keys are of
    another kind.
    """
    keys = table.index
    row_of = [
        _lookup(paths.reindex(images["source_id"]).to_numpy(dtype=object), keys),
        _lookup(images["instance_id"].to_numpy(dtype=object), _hidden(keys, "instance", pseudonyms)),
        _lookup(images.index.to_numpy(dtype=object), keys),
        _lookup(images["study_id"].to_numpy(dtype=object), _hidden(keys, "study", pseudonyms)),
    ]
    if named is not None:
        files = paths.reindex(images["source_id"]).to_numpy(dtype=object)
        asked = [named(path, int(frame)) for path, frame in zip(files, images["frame"], strict=True)]
        row_of = [np.full(len(images), -1)] * 4
        row_of[3 if of_study else 0] = _lookup(np.array(asked, dtype=object), keys)
    own, study = np.select([found >= 0 for found in row_of[:3]], row_of[:3], -1), row_of[3]
    names = [name for name in table.columns if name != "row"]
    values = np.vstack([table[names].to_numpy(dtype=np.float64), np.full(len(names), np.nan)])  # place -1: no row
    of_image, of_study = values[own], values[study]
    highest = pd.DataFrame(of_image).groupby(images["study_id"].to_numpy(dtype=object)).transform("max").to_numpy()
    if wrong := images["study_id"][((highest == 1) & (of_study == 0)).any(axis=1)].nunique():
        tell(f"{wrong} studies have a label 0 where one of their images has 1: 1 counts for the study too")
    of_study = np.where((highest == 1) & ~np.isnan(of_study), 1, of_study)
    of_image = np.where(np.isnan(of_image) & (of_study == 0), 0, of_image)
    matched = ~np.isnan(np.hstack([of_image, of_study])).all(axis=1)
    labels = pd.DataFrame(of_image, images.index, names).assign(**{LEVEL: np.where(own >= 0, "image", "study")})
    if (study >= 0).any():
        labels = labels.join(pd.DataFrame(of_study, images.index, [OF_STUDY.format(name) for name in names]))
    labels = labels[matched]
    if labels[names].notna().all(axis=None):
        labels = labels.astype(dict.fromkeys(names, np.int8))
    # A row that names an image counts as matched, even if the image got its labels from another row.
    used = np.unique(np.concatenate([found[found >= 0] for found in row_of]))
    unused = np.setdiff1d(np.arange(len(table)), used)
    unmatched = pd.DataFrame({"row": np.sort(table["row"].to_numpy()[unused])})
    return JoinedLabels(labels, unmatched)


def _hidden(keys: pd.Index, kind: str, pseudonyms: Pseudonyms) -> pd.Index:
    return pd.Index([pseudonyms.of(kind, key) for key in keys])


def _lookup(values: np.ndarray, keys: pd.Index) -> np.ndarray:
    """Return the index of each value among the keys, -1 if it isn't there or is empty."""
    found = keys.get_indexer(pd.Index(values, dtype=object))
    return np.where(values == "", -1, found)
