"""The models of a finished cross-validation together, and their mean predictions of new images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.checkpoint import BEST
from common.cli.values import HOLDOUT
from common.errors import UsageError
from common.lineage import Provenance
from common.training.ways import AUTO
from rsna.kinds.kind import TrainedNetwork, dataset_folder_of
from rsna.prediction.options import PredictConfig, TrainedOptions, TTAOptions
from rsna.prediction.provenance import check_predicted, network_provenance
from rsna.prediction.trained import (
    load_network,
    load_views,
    mean_of,
    output_path,
    place_of,
    predict_with_studies,
    split_rows,
    write_predictions,
    write_studies,
)
from rsna.training.folds import finished_folds
from rsna.training.outcome import HOLDOUT_FILE, write_flattery
from rsna.training.provenance import write_provenance
from rsna_model import way_of


def load_fold_models(
    config: TrainedOptions, folder: Path, weights: Mapping[int, str] | None = None, **more: Any
) -> dict[int, TrainedNetwork]:
    """Load the models of all folds; UsageError where the folder is no finished cross-validation.

    ``weights`` names each fold's weights (raw, ema, swa) in place of --net_weights. ``more`` goes to
    :func:`rsna.prediction.trained.load_network`.
    """
    more |= place_of(config)
    models: dict[int, TrainedNetwork] = {}
    for fold, facts in finished_folds(folder).items():
        chosen = config.net_weights if weights is None else weights[fold]
        models[fold] = load_network(folder / facts["weights"], weights=chosen, **more)
        if more.get("compute") == AUTO:  # the first fold's measurement holds for all
            more["compute"] = way_of(models[fold].config)
    return models


def predict_by_folds(config: PredictConfig) -> Path:
    """Write the mean of all folds' predictions of new images. Return the file, as predict.py does for one model."""
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
        print(write_flattery(config.net_weight_file, [alone for alone, _ in predicted.values()], rows, float(chosen)))
    if studies is not None:
        print(write_studies(studies, path))
    write_predictions(replace(first, prevalences=prevalences), together, config.split, path)
    if provenance is not None:
        write_provenance(path, provenance)
    return path


def folds_provenance(models: Mapping[int, TrainedNetwork], folder: Path, ids: pd.Index) -> Provenance:
    """Return the provenance of the models' mean predictions of images that are in no fold."""
    facts = finished_folds(folder)
    parts = [
        network_provenance(model, folder / facts[fold]["weights"], ids, new=True) for fold, model in models.items()
    ]
    return reduce(Provenance.beside, parts)


def several_models(folder: Path) -> UsageError:
    """Return the error for --calibrate=1 with a cross-validation, which has no images that none of its models saw."""
    return UsageError(
        f"--calibrate=1 needs one model's weights, and the cross-validation {folder} has several; python ensemble.py "
        f"{folder.name} --ens_calibrate=temperature writes its calibrated submission, by images that none of them saw "
        "(preprocessing.py --pre_holdout, then predict.py --split=holdout)"
    )


def mean_by_folds(
    config: TTAOptions, models: Mapping[int, TrainedNetwork], rows: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame | None, np.ndarray]:
    """Return the models' mean probabilities of ``rows``, those of whole studies (or None), and their prevalences."""
    return *mean_of(predicted_by_folds(config, models, rows)), mean_prevalences(models)


def predicted_by_folds(
    config: TTAOptions, models: Mapping[int, TrainedNetwork], rows: pd.DataFrame
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]:
    """Return each model's probabilities of ``rows``, and those of whole studies where it predicts them."""
    return {
        f"fold {fold}": predict_with_studies(model, rows, load_views(model, config)) for fold, model in models.items()
    }


def mean_prevalences(models: Mapping[int, TrainedNetwork]) -> np.ndarray:
    """Return the mean of the folds' prevalences (6,)."""
    return np.mean([model.prevalences for model in models.values()], axis=0)


def load_refit(config: PredictConfig) -> TrainedNetwork:
    """Load the network of ``--feature_refit``; UsageError where it was not trained on all folds."""
    path = config.feature_refit
    refit = load_network(weight_file(path), weights=config.net_weights, compute=config.net_compute, **place_of(config))
    if refit.config.data_fold != HOLDOUT:
        raise UsageError(
            f"--feature_refit={path}: was trained with --data_fold={refit.config.data_fold}; it takes a "
            "network that saw the images of all folds: train.py --data_fold=holdout"
        )
    return refit


def weight_file(path: Path) -> Path:
    """Return the weight file at ``path``, or in it where it is an experiment's folder."""
    return path / BEST if path.is_dir() else path


def check_made_by(document: Mapping[str, Any], models: Mapping[int, TrainedNetwork], parent: Path) -> None:
    """Raise UsageError unless just these models made the features of ``document`` (features.json)."""
    known = {int(fold): (facts["chosen"], facts["iteration"]) for fold, facts in document["folds"].items()}
    if known != {fold: (model.weights, model.iteration) for fold, model in models.items()}:
        raise UsageError(
            f"{parent}: its models were trained further since its features were made; make them anew "
            "(predict.py --features=1), and train the sequence model on them"
        )
