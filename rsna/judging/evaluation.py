"""Evaluate predictions: metrics with intervals over patients, calibration, operating points, whole studies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UsageError
from common.evaluation.calibration import reliability_table
from common.evaluation.metrics import WEIGHTED, binary_log_losses, prevalences_of
from common.evaluation.reader import (
    Change,
    ReaderStudy,
    calibration_table,
    change_of,
    compare_areas,
    comparison,
    image_losses,
    strata_table,
)
from common.evaluation.resampling import PatientBootstrap
from common.evaluation.statistics import SHORT, label_table
from common.files import write_csv, write_json, write_text
from common.reports.evaluation import evaluation_page
from rsna.judging.strata import strata_of
from rsna.kinds.levels import LEVELS, Level, has_slice_labels, level_of
from rsna_dataset import (
    IDENTITY_COLUMNS,
    LABEL_WEIGHTS,
    LABELS,
    known_groups,
    label_columns,
    read_metadata,
    whole_labels,
)

SEED = 0
WORST = 50
SAME_STUDY = 1e-6  # the model's output for a study equals its highest slices when no value differs by more


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate_predictions` found.

    ``level``: the level that judges, see :func:`rsna.kinds.levels.level_of`. ``study``: its metrics. ``studies``:
    metrics of the studies, each predicted by its highest slice. ``judged``: metrics of the model's own output for the
    studies, if it differs from the highest slices.

    ``table``: a row for each label and ``weighted``, with the level's metrics, their intervals and the constant
    predictor's. ``document``: everything in JSON's types. ``worst``: the images, or studies, with the highest weighted
    log loss.
    """

    level: Level
    study: ReaderStudy
    studies: ReaderStudy
    table: pd.DataFrame
    document: dict[str, Any]
    worst: pd.DataFrame
    judged: ReaderStudy | None = None


def labelled_rows(folder: Path) -> pd.DataFrame:
    """Return all images of a dataset with a label, in the form of :func:`rsna_dataset.read_fold`; UsageError for none.

    The label may be of the image's whole study.
    """
    metadata = read_metadata(folder)
    names = label_columns(metadata)
    rows = metadata[metadata[names].notna().any(axis=1)]
    if rows.empty:
        raise UsageError(f"{folder}: no image of the dataset has labels; give them to preprocessing.py --pre_labels")
    return whole_labels(rows[[*names, *IDENTITY_COLUMNS]])


def constant_basis(labelled: pd.DataFrame, known: pd.Index) -> pd.DataFrame:
    """Return the labelled images from which the constant predictor takes its prevalences: all but ``known``.

    If fewer are left than ``known`` has, return all labelled images: any model beats the prevalences of a few images.
    Example: ``known`` are all images of the folds, and only those that --pre_holdout kept out are left.
    """
    others = labelled.drop(index=known)
    return others if len(others) >= len(known) else labelled


def constant_prevalences(labelled: pd.DataFrame, known: pd.Index) -> np.ndarray:
    """Return the constant predictor's prevalences (6,), those of :func:`constant_basis`, at the level of ``known``."""
    return prevalences_of(level_of(labelled.loc[known]).truth(constant_basis(labelled, known)))


def evaluate_predictions(
    frame: pd.DataFrame,
    rows: pd.DataFrame,
    prevalences: np.ndarray,
    draws: int,
    described: pd.DataFrame | None = None,
    judged: pd.DataFrame | None = None,
) -> Evaluation:
    """Evaluate the probabilities ``frame`` against the labels ``rows`` (same ids, same order), by slice and by study.

    Where only studies have labels, all is of studies, and there are no tables of slices. ``prevalences`` (C,): the
    constant predictor's. ``described``: the dataset's metadata, for the strata. ``judged``: the model's own output for
    whole studies (index ``study_id``).
    """
    level = level_of(rows)
    slices, studies = reader_studies(frame, rows, draws)
    own = None if judged is None else study_level(frame, rows, draws, judged)
    study = slices or own or studies
    predictions, targets, units = study.predictions, study.targets, level.truth(rows).index
    intervals = study.intervals()
    table = label_table(predictions, targets, LABELS, LABEL_WEIGHTS, prevalences, intervals)
    table = table.join(intervals.drop(columns=list(SHORT)))
    worst = worst_images(predictions, targets, units)
    strata = [] if slices is None else records(strata_table(slices, strata_of(rows, described)))
    patients = study.bootstrap.place
    document = {
        "level": level.units,
        "images": len(rows),
        "patients": study.bootstrap.count,
        "positive_patients": study.evidence[WEIGHTED].positive,
        "no_interval": study.evidence[WEIGHTED].reason,
        "studies": len(studies.targets),
        "draws": draws,
        "slice_level": [] if slices is None else records(table.reset_index()),
        "study_level": records(studies.intervals().reset_index()),
        "operating_points": {
            "slice_level": [] if slices is None else records(slices.operating_points()),
            "study_level": records((studies if slices else study).operating_points()),
        },
        "calibration": records(calibration_table(predictions, targets, patients, LABELS, LABEL_WEIGHTS).reset_index()),
        "reliability": {name: records(reliability_table(*study.labelled(c))) for c, name in enumerate(LABELS)},
        "decision_curve": records(study.decision_curve()),
        "strata": strata,
        "largest_error_of_binned_scores": study.binning_errors(),
        "worst_images": records(worst.head(10)),
    }
    if own is None or np.allclose(own.predictions, studies.predictions, rtol=0, atol=SAME_STUDY):
        return Evaluation(level, study, studies, table, document, worst)
    document["study_output"] = records(own.intervals().reset_index())
    document["study_output_against_highest_slice"] = records(comparison(own, studies))
    return Evaluation(level, study, studies, table, document, worst, own)


def reader_studies(frame: pd.DataFrame, rows: pd.DataFrame, draws: int) -> tuple[ReaderStudy | None, ReaderStudy]:
    """Return the metrics of the slices, and those of the studies, each predicted by its highest slice.

    There are none of slices where only studies have labels.
    """
    studies = study_level(frame, rows, draws)
    if not has_slice_labels(rows):
        return None, studies
    predictions, targets = frame[list(LABELS)].to_numpy(np.float64), rows[list(LABELS)].to_numpy(np.float64)
    bootstrap = PatientBootstrap(known_groups(rows), draws, SEED)
    return ReaderStudy(predictions, targets, bootstrap, LABELS, LABEL_WEIGHTS), studies


def study_level(frame: pd.DataFrame, rows: pd.DataFrame, draws: int, judged: pd.DataFrame | None = None) -> ReaderStudy:
    """Return the metrics of whole studies: a study has each label's highest probability of ``frame``.

    Its label is that of :func:`rsna_dataset.study_targets`. ``judged`` (index ``study_id``): probabilities to use
    instead of the highest.
    """
    level = LEVELS["study"]
    bootstrap = PatientBootstrap(level.patients(rows).to_numpy(dtype=str), draws, SEED)
    values = level.predicted(frame, judged, rows).to_numpy(np.float64)
    return ReaderStudy(values, level.truth(rows).to_numpy(), bootstrap, LABELS, LABEL_WEIGHTS)


def worst_images(predictions: np.ndarray, targets: np.ndarray, ids: pd.Index) -> pd.DataFrame:
    """Return the images with the highest weighted log loss: ``id``, ``log_loss``, each label and its probability."""
    sums, weights = image_losses(binary_log_losses(predictions, targets), LABEL_WEIGHTS)
    losses = np.divide(sums, weights, out=np.full(len(sums), np.nan), where=weights > 0)
    order = np.argsort(-losses, kind="stable")[: min(WORST, np.count_nonzero(weights))]
    table = pd.DataFrame({"id": ids[order], "log_loss": losses[order]})
    for column, name in enumerate(LABELS):
        table[name] = pd.array(targets[order, column], dtype="Int8")
        table[f"{name}_predicted"] = predictions[order, column]
    return table


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table's rows in JSON's types; missing and non-finite values become null.

    Numbers keep all digits: a rounded threshold would miss the image that set it.
    """
    known = table.replace([np.inf, -np.inf], np.nan)
    return known.astype(object).where(known.notna(), None).to_dict("records")


def write_evaluation(evaluation: Evaluation, folder: Path, name: str = "evaluation") -> Path:
    """Write ``<name>.csv``, ``<name>.json``, ``<name>_worst.csv`` and ``<name>.html``; return the first."""
    study, document = evaluation.study, evaluation.document
    lead = f"{document['images']:,} slices of {document['studies']:,} studies and {document['patients']:,} patients"
    html = evaluation_page("Evaluation", lead, document, study.predictions, study.targets, LABELS)
    write_text(folder / f"{name}.html", html)
    write_csv(folder / f"{name}_worst.csv", evaluation.worst)
    write_json(folder / f"{name}.json", evaluation.document)
    write_csv(folder / f"{name}.csv", evaluation.table, index=True)
    return folder / f"{name}.csv"


def compare(
    evaluation: Evaluation, slices: ReaderStudy | None, studies: ReaderStudy
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return paired differences of the slices (``evaluation`` minus ``slices``), and DeLong's tests of the studies.

    Where only studies have labels the differences are theirs, each predicted by its highest slice on both sides.
    """
    one = evaluation.studies
    areas = compare_areas(one.predictions, studies.predictions, one.targets, one.bootstrap.place, LABELS)
    return comparison(one, studies) if slices is None else comparison(evaluation.study, slices), areas


def loss_change(first: np.ndarray, second: np.ndarray, targets: np.ndarray, patients: np.ndarray) -> Change:
    """Return the weighted log loss of probabilities ``first`` (N, 6) minus that of ``second``, with its interval."""
    differences = binary_log_losses(first, targets) - binary_log_losses(second, targets)
    change, weights = image_losses(differences, LABEL_WEIGHTS)
    return change_of(change, (targets == 1).any(axis=1), PatientBootstrap(patients), weights)
