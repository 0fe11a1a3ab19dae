"""Linear maps that bring the features of several networks into one space.

The features of two networks have nothing in common: they mean what each network's own head makes of them. A second
stage learns from all folds, so their features must mean the same. A linear map (ridge regression) brings each fold's
features into the first fold's space. It is fitted to images that both networks were trained on, those of the other
folds. So no image takes part in the fit of the map that is applied to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UsageError, WorkError
from common.files import atomic_path
from common.foreign import read_json
from rsna.kinds.features import FOLDERS, HOW, OUT_OF_FOLD, read_document
from rsna.kinds.kind import TrainedNetwork
from rsna.prediction.options import SourceConfig

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, as shares of the features' mean variance
FEWEST_PATIENTS = 10  # with fewer patients, hold out single images to choose the penalty
ALIGNMENT_FILE = "alignment.npy"  # in features/, float32 (K, F + 1, F): each fold's matrix, and its offset as last row
REFIT_FILE, REFIT_INFO = "refit.npy", "refit.json"  # in features/: the map of --feature_refit, and which network it is
REFIT = "refit"  # in place of a fold's number

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Alignment:
    """A map into the first fold's space, x → x · ``matrix`` + ``offset``; ``r2`` is measured on held-out patients."""

    matrix: Floats
    offset: Floats
    r2: float

    def __call__(self, features: Floats) -> Floats:
        """Map features (n, F)."""
        return features @ self.matrix + self.offset


def fit_alignment(features: Floats, reference: Floats, patients: np.ndarray) -> Alignment:
    """Fit the map from ``features`` (n, F) to ``reference`` (n, F) of the same images; ``patients`` (n,).

    A fifth of the patients (of the images, if there are few patients) is held out to choose the penalty.
    """
    names = np.unique(patients)
    held = np.isin(patients, names[::5]) if len(names) >= FEWEST_PATIENTS else np.arange(len(patients)) % 5 == 0
    best = max(PENALTIES, key=lambda penalty: _explained(features, reference, held, penalty))
    matrix, offset = _ridge(features, reference, best)
    return Alignment(matrix, offset, _explained(features, reference, held, best))


def _ridge(features: Floats, reference: Floats, penalty: float) -> tuple[Floats, Floats]:
    mean, target_mean = features.mean(axis=0, dtype=np.float64), reference.mean(axis=0, dtype=np.float64)
    centred = features - mean
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += penalty * np.trace(gram) / len(gram) + 1e-12
    matrix = np.linalg.solve(gram, centred.T @ (reference - target_mean))
    return matrix.astype(np.float32), (target_mean - mean @ matrix).astype(np.float32)


def _explained(features: Floats, reference: Floats, held: np.ndarray, penalty: float) -> float:
    """Return the R² of ``reference`` in the ``held`` rows, by a map fitted to the other rows."""
    matrix, offset = _ridge(features[~held], reference[~held], penalty)
    left = reference[held] - (features[held] @ matrix + offset)
    spread = reference[held] - reference[~held].mean(axis=0)
    return 1.0 - float((left**2).sum()) / max(float((spread**2).sum()), 1e-30)


def read_refit_alignment(config: SourceConfig, refit: TrainedNetwork) -> Alignment:
    """Read the map of the network ``--feature_refit``, which was written together with features/test.

    Raises UsageError if there is none or it belongs to another network, WorkError if the file is damaged.
    """
    parent = config.net_weight_file
    info, path = parent / "features" / REFIT_INFO, parent / "features" / REFIT_FILE
    again = f"python predict.py --net_weight_file={parent} --features=1 --feature_refit={config.feature_refit}"
    if not info.is_file():
        raise UsageError(f"--feature_refit: {parent / 'features'} keeps no map of it; {again} makes one")
    try:
        facts = read_json(info)
        known = (facts["chosen"], facts["iteration"])
        space, r2 = facts["space"], float(facts["alignment_r2"])
        (own,) = _read_maps(path, facts["alignment_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkError(f"{path}: damaged ({' '.join(str(error).split())}); {again}") from None
    if known != (refit.weights, refit.iteration) or space != read_document(parent / FOLDERS[OUT_OF_FOLD]).get(
        "alignment_sha256"
    ):
        raise UsageError(f"--feature_refit: {path} is of another network or of earlier features; {again} makes it anew")
    return Alignment(own[:-1], own[-1], r2)


def first_width(alignments: Mapping[Any, Alignment]) -> int:
    """Return the width of the common space."""
    return len(next(iter(alignments.values())).offset)


def write_alignments(path: Path, alignments: Mapping[int, Alignment]) -> str:
    """Write the maps in order as one array; return the file's sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    maps = np.stack([np.vstack([alignment.matrix, alignment.offset]) for alignment in alignments.values()])
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, maps, allow_pickle=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_alignments(parent: Path) -> dict[int, Alignment]:
    """Read the maps that made the features of the cross-validation ``parent``, one for each fold.

    Raises UsageError if there are no features, or if an older version made them and kept no maps. Raises WorkError if
    the file is not the one that features.json names.
    """
    document = read_document(parent / FOLDERS[OUT_OF_FOLD])
    path = parent / "features" / ALIGNMENT_FILE
    if "alignment_sha256" not in document:
        raise UsageError(f"{parent / 'features'}: an older program made them and kept no maps of the folds; {HOW} anew")
    try:
        maps = _read_maps(path, document["alignment_sha256"])
        facts = {int(fold): known for fold, known in document["folds"].items()}
        return {
            fold: Alignment(own[:-1], own[-1], float(known["alignment_r2"]))
            for own, (fold, known) in zip(maps, facts.items(), strict=True)
        }
    except (OSError, ValueError, KeyError) as error:
        raise WorkError(f"{path}: damaged ({' '.join(str(error).split())}); {HOW} anew") from None


def _read_maps(path: Path, sha256: str) -> Floats:
    """Read maps (K, F + 1, F); OSError or ValueError if the file can't be read or has changed."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError("not the file that the features were made with")
    return np.load(path, allow_pickle=False)
