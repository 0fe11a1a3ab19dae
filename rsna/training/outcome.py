"""Files that a run or a cross-validation leaves for other commands: predictions, and how far their score flatters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from common.cli.values import parse_folds
from common.errors import UsageError, WorkError
from common.experiments.folder import CONFIG
from common.experiments.resume import read_options
from common.files import write_json
from common.foreign import Unreadable, read_json
from common.trackers.tracker import Tracker
from rsna.kinds.levels import Probabilities, level_of
from rsna_dataset import LABELS, METRIC, known_groups

CROSS_VALIDATION_FILE = "cross_validation.json"  # the result of all folds together
OUT_OF_FOLD_FILE, VALID_FILE = "predictions_oof.csv", "predictions_valid.csv"
PREDICTION_FILES = (OUT_OF_FOLD_FILE, VALID_FILE)  # of images that their models were not trained on
HOLDOUT_FILE = "predictions_holdout.csv"  # of the images in no fold, predicted like the test set
FLATTERY_FILE = "flattery.json"  # score of an experiment's models on images in no fold


class Conclude(Protocol):
    """What to do when a run ends: write its status and report, and update the leaderboard.

    The command hands it to the training, which doesn't know reports. ``status`` None: other jobs still train the
    experiment. ``tracker`` gets the figures of a single run.
    """

    def __call__(
        self, folder: Path, status: str | None, *, report: bool = True, tracker: Tracker | None = None
    ) -> None: ...


def holds_out_folds(options: Mapping[str, Any]) -> bool:
    """Whether an experiment's options ask for a cross-validation."""
    try:
        return isinstance(parse_folds(str(options.get("data_fold", 0))), tuple)
    except ValueError:
        return False


def is_cross_validation(folder: Path) -> bool:
    """Whether a folder is a cross-validation's experiment, finished or not."""
    return (folder / CONFIG).is_file() and holds_out_folds(read_options(folder))


def predictions_path(folder: Path) -> Path | None:
    """Return an experiment's file of predictions of images that it wasn't trained on; None if it has none."""
    return next((folder / name for name in PREDICTION_FILES if (folder / name).is_file()), None)


def experiment_predictions(folder: Path) -> Path:
    """Return an experiment's file of predictions as :func:`predictions_path`; UsageError if it has none."""
    path = predictions_path(folder)
    if path is None:
        raise UsageError(f"{folder}: the experiment has no predictions yet ({' or '.join(PREDICTION_FILES)})")
    return path


def studies_file(path: Path) -> Path:
    """Return the file for predictions of studies that belongs to ``path``, the file of their slices."""
    return path.with_name(f"{path.stem}_studies.csv")


def read_judged(path: Path) -> pd.DataFrame | None:
    """Return a network's probabilities of studies (index ``study_id``) that belong to ``path``, the file of slices.

    None if it gave none. Raises WorkError for a damaged file.
    """
    file = studies_file(path)
    if not file.is_file():
        return None
    try:
        found = pd.read_csv(file, dtype={"study_id": str}, keep_default_na=False).set_index("study_id")
        judged = found[list(LABELS)].astype(np.float64)
    except (OSError, ValueError, KeyError):
        judged = None
    if judged is None or not ((judged >= 0) & (judged <= 1)).all(axis=None) or not judged.index.is_unique:
        raise WorkError(f"{file}: damaged; it needs study_id and a probability of each label, as it was written")
    return judged


def write_flattery(folder: Path, alone: Sequence[Probabilities], rows: pd.DataFrame, chosen: float) -> str:
    """Write ``flattery.json``: the mean score of an experiment's single models on images in no fold; describe it.

    ``alone`` are the predictions of each model, of slices and of studies. ``chosen`` is the weighted log loss on the
    images that chose the best weights (for a cross-validation that of all folds together).
    """
    level = level_of(rows)
    each = [level.metrics(frame, judged, rows)[METRIC] for frame, judged in alone]
    found = {"images": len(rows), "patients": len(np.unique(known_groups(rows))), "log_loss": float(np.mean(each))}
    write_json(folder / FLATTERY_FILE, found | {"models": len(each), "log_loss_of_choice": chosen})
    return describe_flattery(folder)


def describe_flattery(folder: Path) -> str:
    """Say that an experiment's score on its validation images flatters, and by how much if that is known.

    The best of all validations is best partly by luck, so that its log loss is lower than on new patients.
    """
    said = "the weights are the best of their validations on these very images, so that their value flatters"
    try:
        found = read_json(folder / FLATTERY_FILE)
        alone, chosen = float(found["log_loss"]), float(found["log_loss_of_choice"])
        who = "the model" if found["models"] == 1 else f"each of the {found['models']} models"
        where = f"the {found['images']} images in no fold ({found['patients']} patients)"
    except (OSError, Unreadable, ValueError, KeyError, TypeError):
        return f"{said}; predict.py --split=holdout says by how much, with images that --pre_holdout kept out"
    return f"{said}: {chosen:.5f} here, and on {where} {who} alone scores {alone:.5f} ({alone - chosen:+.5f})"


def finished_folds(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the folds' entries in cross_validation.json by number; UsageError if not all are finished."""
    path = folder / CROSS_VALIDATION_FILE
    try:
        document = read_json(path)
        facts = {int(fact["fold"]): fact for fact in document["folds"]}
        weights = [folder / fact["weights"] for fact in facts.values()]
    except (FileNotFoundError, NotADirectoryError):
        what = "is not finished" if is_cross_validation(folder) else "is no cross-validation's folder"
        raise UsageError(f"{folder}: {what}: it has no {CROSS_VALIDATION_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise WorkError(f"{path}: damaged; python train.py --tr_resume={folder} writes it again") from None
    missing = [file for file in weights if not file.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: is missing; a cross-validation predicts by the models of all its folds")
    return facts
