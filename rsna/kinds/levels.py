"""The levels at which networks are judged: slices by the labels of slices, studies by those of whole studies.

A network that chooses its weights by a validation is judged at the first level of :data:`LEVELS` that has labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from common.cli.choices import Row, table
from common.evaluation.metrics import STUDY, WeightedLogLoss, by_group, levels_of, probabilities
from rsna_dataset import LABEL_WEIGHTS, LABELS, METRIC, known_groups, study_targets

if TYPE_CHECKING:
    from common.networks.network import Predictions

Probabilities = tuple[pd.DataFrame, pd.DataFrame | None]  # probabilities of slices (index id), of studies (study_id)


@dataclass(frozen=True)
class Level(Row):
    """One level, ``slice`` or ``study``.

    - ``units``: what its rows are, in words. ``metric``: the key of its weighted log loss. ``prefix``: of its keys.
    - ``truth``: (images with labels) → its labels, float64 :data:`LABELS`, NaN where missing, one row for each unit.
    - ``patients``: (images with labels) → the group of each unit, index as of ``truth``.
    - ``has_labels``: (images with labels) → whether somebody labelled this level.
    - ``predicted``: (probabilities of images, of studies or None, images) → probabilities in the order of ``truth``.
      Where a network gives no output for studies, each has the highest probability of its slices.
    """

    units: str = field(kw_only=True)
    metric: str = field(kw_only=True)
    prefix: str = field(default="", kw_only=True)
    truth: Callable[[pd.DataFrame], pd.DataFrame] = field(kw_only=True)
    patients: Callable[[pd.DataFrame], pd.Series] = field(kw_only=True)
    has_labels: Callable[[pd.DataFrame], bool] = field(kw_only=True)
    predicted: Callable[[pd.DataFrame, pd.DataFrame | None, pd.DataFrame], pd.DataFrame] = field(kw_only=True)

    def metrics(self, frame: pd.DataFrame, judged: pd.DataFrame | None, rows: pd.DataFrame) -> dict[str, float]:
        """Return the weighted log loss and that of each label, without :attr:`prefix`.

        ``frame`` and ``judged``: probabilities of the images ``rows``, and of their studies if the network gives them.
        """
        truth, metric = self.truth(rows), WeightedLogLoss(LABELS, LABEL_WEIGHTS)
        metric.update(self.predicted(frame, judged, rows).to_numpy(), truth.to_numpy(), list(truth.index))
        return metric.compute()


def studies_of(rows: pd.DataFrame) -> np.ndarray:
    """Return the study of each image (N,), text; an image without one belongs to the study of its patient."""
    return np.where(rows["study_id"] == "", known_groups(rows), rows["study_id"]).astype(str)


def slice_truth(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the labels of slices."""
    return rows[list(LABELS)].astype(np.float64)


def slice_patients(rows: pd.DataFrame) -> pd.Series:
    """Return the group of each image."""
    return pd.Series(known_groups(rows), rows.index)


def has_slice_labels(rows: pd.DataFrame) -> bool:
    """Whether slices were labelled: either none lacks a label, or one has a label 1.

    Otherwise the zeros come from studies without bleeding. No slice of a bleeding study counts then, and a value over
    the others says nothing.
    """
    labels = rows[list(LABELS)]
    return bool((labels == 1).any(axis=None)) or not bool(labels.isna().any(axis=None))


def of_slices(frame: pd.DataFrame, judged: pd.DataFrame | None, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the probabilities of the images ``rows``."""
    return frame.loc[rows.index, list(LABELS)]


def study_truth(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the labels of studies, see :func:`rsna_dataset.study_targets`."""
    return study_targets(rows, studies_of(rows))


def study_patients(rows: pd.DataFrame) -> pd.Series:
    """Return the group of each study."""
    return pd.Series(known_groups(rows)).groupby(studies_of(rows)).first()


def has_study_labels(rows: pd.DataFrame) -> bool:
    """Whether a study has a label, be it of its own or from its slices."""
    return bool(study_truth(rows).notna().any(axis=None))


def of_studies(frame: pd.DataFrame, judged: pd.DataFrame | None, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the probabilities of the studies of ``rows``, sorted by name."""
    studies = studies_of(rows)
    names = np.unique(studies)
    if judged is not None:
        return judged.loc[names, list(LABELS)]
    highest = by_group(frame.loc[rows.index, list(LABELS)].to_numpy(np.float64), studies)
    return pd.DataFrame(highest, pd.Index(names, name="study_id"), list(LABELS))


SLICE_METRIC, STUDY_METRIC = levels_of(METRIC)
LEVELS: dict[str, Level] = table(
    (
        Level(
            "slice",
            "slices, where slices are labelled",
            units="slices",
            metric=SLICE_METRIC,
            truth=slice_truth,
            patients=slice_patients,
            has_labels=has_slice_labels,
            predicted=of_slices,
        ),
        Level(
            "study",
            "whole studies, where these are labelled",
            units="studies",
            metric=STUDY_METRIC,
            prefix=STUDY,
            truth=study_truth,
            patients=study_patients,
            has_labels=has_study_labels,
            predicted=of_studies,
        ),
    )
)


def level_of(rows: pd.DataFrame) -> Level:
    """Return the level at which the images ``rows`` judge a network; that of slices where nothing is labelled."""
    return next((level for level in LEVELS.values() if level.has_labels(rows)), LEVELS["slice"])


def study_frame(predictions: Predictions, rows: pd.DataFrame) -> pd.DataFrame | None:
    """Return the probabilities of studies (index ``study_id``); None from a network that gives none.

    Such a network gives each slice's logits and those of its study beside them, (N, 12). A study with several series
    has each label's highest probability. ``rows`` (index ``id``) name the images' studies.
    """
    logits = predictions.logits[:, len(LABELS) :]
    if not logits.shape[1]:
        return None
    found = pd.DataFrame(probabilities(logits), predictions.image_ids, list(LABELS))
    return of_studies(found, None, rows.loc[predictions.image_ids])
