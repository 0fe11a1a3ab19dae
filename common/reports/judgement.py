"""How an experiment's predictions were judged, kept beside it, so that a table of experiments can compare two of them.

``judged.json`` says on which images and how well. ``judged.npz`` has what each patient adds to the value: from two of
them comes the paired difference with its interval, without the predictions and the labels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import atomic_path, write_json
from common.foreign import read_arrays, read_json

Array = npt.NDArray[np.float64]
JUDGED_FILE, PATIENTS_FILE = "judged.json", "judged.npz"
MOST_TEXT, MOST_BYTES = 60, 8 * 2**20  # in a file that anybody may have made
HASH = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Judgement:
    """The result of judging predictions.

    ``dataset``: the dataset's hash. ``images``: hash of the images with their labels and patients, see
    :func:`hash_images`. ``count`` and ``patients``: how many there are. ``level``: what the labels are of. ``what``:
    which of the dataset's images these are, in words. ``value`` of ``metric`` with its interval ``low`` to ``high``,
    None without one. ``of_constant``: the value over that of the constant predictor. ``auroc_any``: None if one class
    is missing.
    """

    dataset: str
    images: str
    count: int
    patients: int
    level: str
    what: str
    metric: str
    value: float
    low: float | None
    high: float | None
    of_constant: float | None
    auroc_any: float | None


def hash_images(ids: Sequence[str], targets: Array, patients: Sequence[str]) -> str:
    """Hash images by their ids, ``targets`` (N, C) and patients, in any order."""
    order = np.argsort(np.asarray(ids, dtype=str), kind="stable")
    digest = hashlib.blake2b(digest_size=8)
    for texts in (ids, patients):
        digest.update("\n".join(str(texts[place]) for place in order).encode())
    digest.update(np.ascontiguousarray(targets[order], dtype="<f8").tobytes())
    return digest.hexdigest()


def write_judgement(folder: Path, judged: Judgement, parts: Array, positive: Array, negative: Array) -> None:
    """Write both files to an experiment's folder.

    ``parts`` (P,): how far the value moves with each patient's weight, patients sorted by name. ``positive`` and
    ``negative`` (P,): their numbers of images.
    """
    with atomic_path(folder / PATIENTS_FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, parts=parts, positive=positive, negative=negative)
    write_json(folder / JUDGED_FILE, asdict(judged))


def read_judgement(folder: Path) -> dict[str, Any]:
    """Return what ``judged.json`` of a folder says, by the names of :class:`Judgement`; empty if it can't be used."""
    try:
        found = read_json(folder / JUDGED_FILE)
    except (OSError, ValueError):
        return {}
    return found if is_judgement(found) else {}


def is_judgement(found: Any) -> bool:
    """Whether a document has the fields of :class:`Judgement`, each of its type."""
    if not isinstance(found, dict) or found.keys() != {field.name for field in fields(Judgement)}:
        return False
    texts = [found[name] for name in ("dataset", "images", "level", "what", "metric")]
    numbers = [found[name] for name in ("low", "high", "of_constant", "auroc_any") if found[name] is not None]
    return (
        all(isinstance(text, str) and len(text) <= MOST_TEXT and text.isprintable() for text in texts)
        and all(HASH.fullmatch(found[name]) for name in ("dataset", "images"))
        and all(type(found[name]) is int and found[name] >= 0 for name in ("count", "patients"))
        and all(type(number) is float and abs(number) < np.inf for number in [found["value"], *numbers])
    )


def read_patients(folder: Path, patients: int) -> tuple[Array, Array, Array] | None:
    """Return parts, positive and negative images of each patient, each (P,); None if the file can't be used."""
    try:
        found = read_arrays(folder / PATIENTS_FILE, MOST_BYTES)
        parts, positive, negative = (found[name].astype(np.float64) for name in ("parts", "positive", "negative"))
    except (OSError, ValueError, KeyError):
        return None
    whole = all(one.shape == (patients,) and np.isfinite(one).all() for one in (parts, positive, negative))
    return (parts, positive, negative) if whole and patients else None
