"""Mean predictions of the models of a cross-validation, for predict.py and evaluate.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd

from common.cli.values import HOLDOUT
from common.errors import UsageError
from common.lineage import Provenance
from rsna.kinds.kind import TrainedNetwork, dataset_folder_of
from rsna.prediction.fold_models import load_fold_models, several_models
from rsna.prediction.options import SplitConfig, TTAOptions
from rsna.prediction.provenance import check_predicted, network_provenance
from rsna.prediction.trained import (
    load_views,
    mean_of,
    output_path,
    predict_with_studies,
    split_rows,
    write_predictions,
    write_studies,
)
from rsna.training.outcome import HOLDOUT_FILE, finished_folds, write_flattery
from rsna.training.provenance import write_provenance


def predict_by_folds(config: SplitConfig) -> Path:
    """Write the mean of all folds' predictions of new images; return the file."""
    if config.split in ("train", "valid"):
        raise UsageError(
            f"--split={config.split}: {config.net_weight_file / 'predictions_oof.csv'} has the predictions of these "
            "images by the models that were not trained on them"
        )
    if config.calibrate:
        raise several_models(config.net_weight_file)
    models = load_fold_models(
        config, config.net_weight_file, any_kind=True, seq_features=config.seq_features, compute=config.net_compute
    )
    first = next(iter(models.values()))
    rows = split_rows(first, config.split)
    path = output_path(config, first, config.net_weight_file)
    provenance = folds_provenance(models, config.net_weight_file, rows.index) if config.split != "test" else None
    if provenance is not None:
        check_predicted(provenance, dataset_folder_of(first), rows.index, config)
    predicted = predicted_by_folds(config, models, rows)
    (together, studies), prevalences = mean_of(predicted), mean_prevalences(models)
    if config.split == HOLDOUT and path == config.net_weight_file / HOLDOUT_FILE:
        facts = finished_folds(config.net_weight_file).values()
        losses, images = zip(*((fact["weighted_log_loss"], fact["images"]) for fact in facts), strict=True)
        chosen = np.average(losses, weights=images)
        print(write_flattery(config.net_weight_file, list(predicted.values()), rows, float(chosen)))
    if studies is not None:
        print(write_studies(studies, path))
    write_predictions(replace(first, prevalences=prevalences), together, config.split, path)
    if provenance is not None:
        write_provenance(path, provenance)
    return path


def folds_provenance(models: Mapping[int, TrainedNetwork], folder: Path, ids: pd.Index) -> Provenance:
    """Return the provenance of the models' mean predictions for images in no fold."""
    facts = finished_folds(folder)
    parts = [
        network_provenance(model, folder / facts[fold]["weights"], ids, new=True) for fold, model in models.items()
    ]
    return reduce(Provenance.beside, parts)


def mean_by_folds(
    config: TTAOptions, models: Mapping[int, TrainedNetwork], rows: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame | None, np.ndarray]:
    """Return the models' mean probabilities of ``rows``, those of studies (or None), and the mean prevalences."""
    return *mean_of(predicted_by_folds(config, models, rows)), mean_prevalences(models)


def predicted_by_folds(
    config: TTAOptions, models: Mapping[int, TrainedNetwork], rows: pd.DataFrame
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]:
    """Return each model's probabilities of ``rows``, and those of studies if it judges studies."""
    return {
        f"fold {fold}": predict_with_studies(model, rows, load_views(model, config)) for fold, model in models.items()
    }


def mean_prevalences(models: Mapping[int, TrainedNetwork]) -> np.ndarray:
    """Return the mean of the folds' prevalences (6,)."""
    return np.mean([model.prevalences for model in models.values()], axis=0)
