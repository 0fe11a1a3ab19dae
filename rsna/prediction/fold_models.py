"""Load and check the models of a finished cross-validation, and a network trained on all its folds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.checkpoint import BEST
from common.cli.values import HOLDOUT
from common.errors import UsageError
from common.training.ways import AUTO
from rsna.kinds.kind import TrainedNetwork
from rsna.prediction.options import TRAINING, FeaturesConfig, SourceConfig, WeightsOptions
from rsna.prediction.trained import load_network, place_of
from rsna.training.outcome import finished_folds
from rsna_model import way_of


def load_fold_models(
    config: WeightsOptions, folder: Path, weights: Mapping[int, str] | None = None, **more: Any
) -> dict[int, TrainedNetwork]:
    """Load the models of all folds; UsageError if the folder is no finished cross-validation.

    ``weights`` names each fold's weights (raw, ema, swa) and overrides --net_weights. ``more`` goes to
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


def several_models(folder: Path) -> UsageError:
    """Return the error for --calibrate=1 with a cross-validation: every image was seen by some of its models."""
    return UsageError(
        f"--calibrate=1 needs one model's weights, and the cross-validation {folder} has several; python ensemble.py "
        f"{folder.name} --ens_calibrate=temperature writes its calibrated submission, by images that none of them saw "
        "(preprocessing.py --pre_holdout, then predict.py --split=holdout)"
    )


def load_refit(config: FeaturesConfig | SourceConfig, compute: str = TRAINING) -> TrainedNetwork:
    """Load the network of ``--feature_refit``; UsageError if it was not trained on all folds."""
    path = config.feature_refit
    refit = load_network(weight_file(path), weights=config.net_weights, compute=compute, **place_of(config))
    if refit.config.data_fold != HOLDOUT:
        raise UsageError(
            f"--feature_refit={path}: was trained with --data_fold={refit.config.data_fold}; it takes a "
            "network that saw the images of all folds: train.py --data_fold=holdout"
        )
    return refit


def weight_file(path: Path) -> Path:
    """Return ``path``, or its best.pt if it is an experiment's folder."""
    return path / BEST if path.is_dir() else path


def check_made_by(document: Mapping[str, Any], models: Mapping[int, TrainedNetwork], parent: Path) -> None:
    """Raise UsageError unless these models made the features that ``document`` (features.json) describes."""
    known = {int(fold): (facts["chosen"], facts["iteration"]) for fold, facts in document["folds"].items()}
    if known != {fold: (model.weights, model.iteration) for fold, model in models.items()}:
        raise UsageError(
            f"{parent}: its models were trained further since its features were made; make them anew "
            "(predict.py --features=1), and train the sequence model on them"
        )
