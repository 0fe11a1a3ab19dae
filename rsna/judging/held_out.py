"""Read written predictions of the images in no fold, or of the images that another experiment predicted too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.checkpoint import BEST
from common.errors import UsageError, WorkError, list_some
from rsna.forms import read_predictions
from rsna.training.outcome import HOLDOUT_FILE
from rsna_dataset import LABELS, read_holdout


@dataclass(frozen=True)
class HeldOut:
    """Experiments' ``predictions`` of the images that --pre_holdout kept out of all folds, and their labels ``rows``.

    They come from the models that predict the test set, for a cross-validation the mean of its models. None of these
    models saw the images.
    """

    predictions: dict[str, pd.DataFrame]
    rows: pd.DataFrame

    @property
    def targets(self) -> np.ndarray:
        """The labels (N, 6)."""
        return self.rows[list(LABELS)].to_numpy(np.float64)


def held_out_predictions(dataset: Path, experiments: Mapping[str, Path]) -> HeldOut:
    """Read the predictions that ``experiments`` (folders by name) made of the images in no fold of ``dataset``.

    Raises UsageError if there are no such images or an experiment has not predicted them yet, and says what to do.
    Raises WorkError if an experiment's predictions lack some of them.
    """
    rows = read_holdout(dataset, dataset.name)
    refuse_gaps(rows, f"{dataset}: its images in no fold")
    files = {name: folder / HOLDOUT_FILE for name, folder in experiments.items()}
    for file in files.values():
        if not file.is_file():
            folder = file.parent
            if (folder / "ensemble.json").is_file() or (folder / "second_level.json").is_file():
                what = "make its members' by predict.py --split=holdout, then the experiment anew"
            else:
                weights = folder / BEST if (folder / BEST).is_file() else folder
                what = f"python predict.py --split=holdout --net_weight_file={weights} writes it"
            raise UsageError(f"there is no {file}; {what}")
    found = {name: matching_predictions(read_predictions(file), rows.index, str(file)) for name, file in files.items()}
    return HeldOut(found, rows)


def refuse_gaps(rows: pd.DataFrame, what: str) -> None:
    """Raise UsageError if a label of ``rows`` is missing: fits and trees need all six of each image."""
    gaps = int(rows[list(LABELS)].isna().any(axis=1).sum())
    if gaps:
        raise UsageError(f"{what}: {gaps} of {len(rows)} lack labels, and what is fitted here needs all six of each")


def matching_predictions(frame: pd.DataFrame, ids: pd.Index, source: str) -> pd.DataFrame:
    """Return the rows of ``frame`` for ``ids``, in this order; WorkError if some are missing."""
    missing = ids.difference(frame.index)
    if len(missing):
        raise WorkError(
            f"{source}: has no predictions for {len(missing)} of {len(ids)} images ({list_some(missing)}); only "
            "predictions of the same images can be compared"
        )
    return frame.loc[ids]
