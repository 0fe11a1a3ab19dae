"""Labels from a file of the user's, joined with images by path, SOPInstanceUID or StudyInstanceUID."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import WorkError
from common.preprocessing.pseudonyms import FILE, IMAGE, Pseudonyms, is_made

LEVEL = "label_level"
UID = re.compile(r"[0-9]+(\.[0-9]+)+|[0-9]{20,}")  # also of exports that write them without points
SUFFIXES = (".gz", ".dcm")  # that a label's path may lack or have
NOWHERE, AMBIGUOUS = -1, -2


@dataclass(frozen=True)
class JoinedLabels:
    """``labels``: index ``image_id``, a column for each label and ``label_level``: image, or study where the labels say
    something of the whole study. ``unmatched``: which rows of the label file (``row``) belong to no image.
    """

    labels: pd.DataFrame
    unmatched: pd.DataFrame


@dataclass(frozen=True)
class LocatedLabels:
    """``table``: the labels with the source's own path in place of each key that names a file otherwise.

    ``by_tail``, ``lost``: rows of the label file (numbers) whose path was matched by its tail, and whose path names no
    file; a key without folders and without ``.dcm`` may as well be an identifier, and is never lost.
    """

    table: pd.DataFrame
    by_tail: np.ndarray
    lost: np.ndarray


def locate_labels(table: pd.DataFrame, paths: Sequence[str], root: Path) -> LocatedLabels:
    """Find the files that labels name by an absolute path, or from another folder than the source's.

    ``table``: as for :func:`join_labels`; ``paths``: of all files, relative to the source ``root``. A key that is no
    path of theirs names the file whose path is its tail (the longest one), or whose path has it as its tail, as a name
    without folders; capitals, ``.dcm`` and ``.gz`` are overlooked where that leaves one file. A file of which nobody
    can say which of two keys means it is an error that names the rows. Nothing is read but names.
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
        # Of two absolute paths the one that leads through the source's own folder is meant.
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
    """Whether a key can be no path: a UID, or an id of this project's."""
    return UID.fullmatch(key) is not None or is_made(IMAGE, key) or is_made(FILE, key)


def _is_path(key: str) -> bool:
    """Whether a key can be nothing but a path."""
    return "/" in key or key.casefold().endswith(SUFFIXES)


def _parts(path: str) -> tuple[str, ...]:
    """Return a path's folders and name, without capitals and without the suffixes of DICOM files."""
    parts = [part for part in path.casefold().split("/") if part not in ("", ".")]
    for suffix in SUFFIXES:
        parts[-1:] = [part.removesuffix(suffix) for part in parts[-1:]]
    return tuple(parts)


def _shared_tail(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many last parts two paths have in common."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


class _Tails:
    """The files of a source by their paths, and by their last parts where a key has fewer."""

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
        """Return the place of the file that a path means, negative for none or several."""
        for start in range(len(key)):  # the longest tail first
            if key[start:] in self.whole:
                return self.whole[key[start:]]
        if len(key) not in self.by_length:
            self.by_length[len(key)] = self._by([parts[-len(key) :] for parts in self.parts])
        return self.by_length[len(key)].get(key, NOWHERE) if key else NOWHERE


def join_labels(table: pd.DataFrame, images: pd.DataFrame, paths: pd.Series, pseudonyms: Pseudonyms) -> JoinedLabels:
    """Give each image the labels of its path, else of its SOPInstanceUID, else of its id here, else of its study.

    ``table``: index ``key``, a column for each label and ``row``; ``images``: the journal's records (index
    ``image_id``, with source_id, instance_id, study_id: pseudonyms), ``paths``: of the source's files, index source_id.
    The keys are made pseudonyms like the images' identifiers and then compared, so that no identifier is written.
    """
    keys = table.index
    row_of = [
        _lookup(paths.reindex(images["source_id"]).to_numpy(dtype=object), keys),
        _lookup(images["instance_id"].to_numpy(dtype=object), _hidden(keys, "instance", pseudonyms)),
        _lookup(images.index.to_numpy(dtype=object), keys),
        _lookup(images["study_id"].to_numpy(dtype=object), _hidden(keys, "study", pseudonyms)),
    ]
    place = np.select([found >= 0 for found in row_of], row_of, -1)
    level = np.select([found >= 0 for found in row_of], ["image", "image", "image", "study"], "")
    matched = place >= 0
    labels = table.drop(columns="row").iloc[place[matched]].set_axis(images.index[matched])
    # A row counts as matched where it names an image, even if that image has labels of its own.
    used = np.unique(np.concatenate([found[found >= 0] for found in row_of]))
    unused = np.setdiff1d(np.arange(len(table)), used)
    unmatched = pd.DataFrame({"row": np.sort(table["row"].to_numpy()[unused])})
    return JoinedLabels(labels.assign(**{LEVEL: level[matched]}), unmatched)


def _hidden(keys: pd.Index, kind: str, pseudonyms: Pseudonyms) -> pd.Index:
    return pd.Index([pseudonyms.of(kind, key) for key in keys])


def _lookup(values: np.ndarray, keys: pd.Index) -> np.ndarray:
    """Return the place of each value among the keys, -1 where it isn't there or empty."""
    found = keys.get_indexer(pd.Index(values, dtype=object))
    return np.where(values == "", -1, found)
