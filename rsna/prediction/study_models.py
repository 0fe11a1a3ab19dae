"""Models for studies of any origin: a network, the networks of a cross-validation, or sequence models over these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd
import torch

from common.checkpoint import chosen_weights, load_checkpoint
from common.errors import UsageError
from common.evaluation.calibration import calibration_of
from rsna.kinds.features import FOLDERS, OUT_OF_FOLD, features_hash, features_in_memory, read_document
from rsna.kinds.kind import TrainedNetwork, kind_of
from rsna.kinds.sequences import predict_features
from rsna.prediction.alignment import REFIT, Alignment, read_alignments, read_refit_alignment
from rsna.prediction.embeddings import mean_blocks
from rsna.prediction.fold_models import check_made_by, load_fold_models, load_refit, several_models, weight_file
from rsna.prediction.options import SourceConfig
from rsna.prediction.trained import (
    Calibration,
    Views,
    asked_calibration,
    check_sees_pictures,
    checkpoint_options,
    load_calibration,
    load_network,
    load_views,
    mean_of,
    place_of,
    predict_with_studies,
)
from rsna.training.outcome import finished_folds, is_cross_validation
from rsna_dataset import LABELS


@dataclass(frozen=True)
class Predicted:
    """Probabilities of :data:`LABELS` for the ``slices`` (index ``id``) and for the ``study``."""

    slices: pd.DataFrame
    study: pd.Series


class StudyModel(Protocol):
    """Predicts the slices of a study, and the study."""

    @property
    def judges_studies(self) -> bool:
        """Whether the model judges a study itself, not by its highest slice."""

    @property
    def networks(self) -> Mapping[str, TrainedNetwork]:
        """The slice networks by name."""

    def predict(self, rows: pd.DataFrame) -> Predicted:
        """Predict one study from its ``rows`` of metadata.csv, without further processes."""

    def describe(self) -> str:
        """Describe the model in a few words."""

    def document(self) -> dict[str, Any]:
        """Return which weights the model uses, in JSON's types."""


@dataclass(frozen=True)
class SliceModels:
    """One network, or the mean of several.

    A study gets the probabilities of its highest slices, or those of networks over whole series.
    """

    networks: Mapping[str, TrainedNetwork]
    views: Mapping[str, Views | None]
    calibration: Calibration | None

    def predict(self, rows: pd.DataFrame) -> Predicted:
        """Predict one study."""
        frame, studies = mean_of(
            {
                name: predict_with_studies(network, rows, self.views[name], workers=0)
                for name, network in self.networks.items()
            }
        )
        if self.calibration is not None:
            frame = calibration_of(frame, self.calibration.slices)
        if studies is None:
            return Predicted(frame, frame[list(LABELS)].max())
        if self.calibration is not None:
            studies = calibration_of(studies, self.calibration.studies)
        return Predicted(frame, studies.iloc[0][list(LABELS)])

    @property
    def judges_studies(self) -> bool:
        """Whether the networks see whole series."""
        return all(kind_of(network.config).judges_studies for network in self.networks.values())

    def describe(self) -> str:
        """Say in a few words what predicts."""
        return describe_networks(self.networks)

    def document(self) -> dict[str, Any]:
        """Return which weights predict."""
        views = next(iter(self.views.values()))
        return {
            "slices": network_documents(self.networks),
            "study": study_rule(self.networks),
            "calibrated": self.calibration is not None,
            "views": 0 if views is None else len(views.pipelines),
        }


@dataclass(frozen=True)
class SequenceModels:
    """One sequence model, or the mean of several, over the features of slice ``networks``.

    Each network's embeddings are mapped into the common space. Their mean is the feature of the slice, as in
    features/test. ``folder`` is the folder of the cross-validation.
    """

    judges_studies: ClassVar[bool] = True

    folder: Path
    networks: Mapping[str, TrainedNetwork]
    alignments: Mapping[str, Alignment]
    sequences: Mapping[str, TrainedNetwork]
    calibration: Calibration | None

    def predict(self, rows: pd.DataFrame) -> Predicted:
        """Predict one study."""
        blocks = mean_blocks(self.networks, self.alignments, rows, workers=0)
        features = features_in_memory(blocks, self.folder)
        slices, study = mean_of(
            {
                name: predict_features(model.network, model.config, rows, features)
                for name, model in self.sequences.items()
            }
        )
        if self.calibration is not None:
            slices = calibration_of(slices, self.calibration.slices)
            study = calibration_of(study, self.calibration.studies)
        return Predicted(slices, study.iloc[0][list(LABELS)])

    def describe(self) -> str:
        """Say in a few words what predicts."""
        kinds = sorted({kind_of(model.config).model_name(model.config) for model in self.sequences.values()})
        count = len(self.sequences)
        models = f"a sequence model ({kinds[0]})" if count == 1 else f"{count} sequence models ({', '.join(kinds)})"
        return f"{models} over {describe_networks(self.networks)}"

    def document(self) -> dict[str, Any]:
        """Return which weights predict."""
        return {
            "slices": network_documents(self.networks),
            "sequences": network_documents(self.sequences),
            "study": study_rule(self.sequences),
            "calibrated": self.calibration is not None,
            "views": 0,
        }


def describe_networks(networks: Mapping[str, TrainedNetwork]) -> str:
    """Describe number and model of slice networks in words."""
    first = next(iter(networks.values()))
    kind = kind_of(first.config).model_name(first.config)
    if len(networks) == 1:
        return f"{kind} ({first.weights} weights of iteration {first.iteration})"
    return f"the mean of {len(networks)} folds' {kind}"


def study_rule(networks: Mapping[str, TrainedNetwork]) -> str:
    """Describe how networks of one kind compute the study's probabilities."""
    config = next(iter(networks.values())).config
    return kind_of(config).study_rule(config)


def network_documents(networks: Mapping[str, TrainedNetwork]) -> list[dict[str, Any]]:
    """Return name, model and weights of each network in JSON's types."""
    return [
        {
            "name": name,
            "model": kind_of(network.config).model_name(network.config),
            "weights": network.weights,
            "iteration": network.iteration,
            "precision": str(network.network.amp_dtype or torch.float32).removeprefix("torch."),
            "channels_last": network.config.tr_channels_last,
        }
        for name, network in networks.items()
    ]


def fold_key(fold: int) -> str:
    """Return the name of a fold's model."""
    return f"fold {fold}"


def first_weight_file(path: Path) -> Path:
    """Return the weight file that ``--net_weight_file`` names; for a cross-validation that of the first fold."""
    if not path.is_dir():
        return path
    return path / next(iter(finished_folds(path).values()))["weights"]


def check_models(config: SourceConfig) -> None:
    """Raise UsageError, before anything is written, for models and options that don't go together."""
    folder = config.net_weight_file.is_dir()
    slice_file = first_weight_file(config.net_weight_file)
    check_sees_pictures(checkpoint_options(load_checkpoint(slice_file), slice_file), slice_file)
    if config.calibrate:
        check_calibration(config)
    if config.sequence is None:
        return
    if not folder:
        raise UsageError(
            f"--sequence needs a cross-validation's folder as --net_weight_file, whose features it was trained on; "
            f"{config.net_weight_file} is none"
        )
    read_alignments(config.net_weight_file)
    load_sequences(config, config.net_weight_file)


def check_calibration(config: SourceConfig) -> None:
    """Raise UsageError if several models predict or temperatures are missing; errors as :func:`load_calibration`."""
    files = {"": config.net_weight_file} if config.sequence is None else sequence_files(config.sequence)
    (file,) = files.values() if len(files) == 1 else [None]
    if file is None or file.is_dir():
        raise several_models(config.sequence or config.net_weight_file)
    checkpoint = load_checkpoint(file)
    judges = kind_of(checkpoint_options(checkpoint, file)).judges_studies
    load_calibration(file, chosen_weights(checkpoint, config.net_weights)[0], checkpoint["iteration"], studies=judges)


def load_study_model(config: SourceConfig) -> StudyModel:
    """Load the models that ``--net_weight_file`` and ``--sequence`` name, for the dataset of ``config``.

    Raises UsageError for models that don't go together, and the errors of :func:`rsna.prediction.trained.load_network`.
    """
    path = config.net_weight_file
    if config.sequence is not None:
        sequences = load_sequences(config, path)
        (name, first), *_ = sequences.items()
        calibration = asked_calibration(config, sequence_files(config.sequence)[name], first)
        if config.feature_refit is not None:
            refit = load_refit(config, config.net_compute)
            maps = {REFIT: read_refit_alignment(config, refit)}
            return SequenceModels(path, {REFIT: refit}, maps, sequences, calibration)
        document = read_document(path / FOLDERS[OUT_OF_FOLD])
        alignments = {fold_key(fold): alignment for fold, alignment in read_alignments(path).items()}
        chosen = {int(fold): facts["chosen"] for fold, facts in document["folds"].items()}
        folds = load_fold_models(config, path, chosen, compute=config.net_compute)
        check_made_by(document, folds, path)
        networks = {fold_key(fold): model for fold, model in folds.items()}
        return SequenceModels(path, networks, alignments, sequences, calibration)
    if path.is_dir():
        folds = load_fold_models(config, path, compute=config.net_compute)
        networks = {fold_key(fold): network for fold, network in folds.items()}
    else:
        network = load_network(path, weights=config.net_weights, compute=config.net_compute, **place_of(config))
        networks = {path.name: network}
    calibration = None if path.is_dir() else asked_calibration(config, path, networks[path.name])
    views = {name: load_views(network, config) for name, network in networks.items()}
    return SliceModels(networks, views, calibration)


def sequence_files(path: Path) -> dict[str, Path]:
    """Return the weight files of ``--sequence``: a file, an experiment's best.pt, or a cross-validation's by fold."""
    if is_cross_validation(path):
        return {fold_key(fold): path / facts["weights"] for fold, facts in finished_folds(path).items()}
    file = weight_file(path)
    return {file.name: file}


def load_sequences(config: SourceConfig, parent: Path) -> dict[str, TrainedNetwork]:
    """Load the sequence models of ``--sequence``: a file, an experiment's best.pt, or those of a cross-validation.

    Raises UsageError for another kind of model, and for a model that was trained on other features than those of the
    cross-validation ``parent``.
    """
    path = config.sequence
    due = features_hash(parent / FOLDERS[OUT_OF_FOLD])
    found = {}
    for name, file in sequence_files(path).items():
        checkpoint = load_checkpoint(file)
        if not kind_of(checkpoint_options(checkpoint, file)).reads_features:
            raise UsageError(f"--sequence={path}: {file} is no sequence model; a slice network is a --net_weight_file")
        if checkpoint["transforms"].get("features", {}).get("sha256") != due:
            raise UsageError(
                f"--sequence={path}: {file} was trained on other features than those that lie in {parent / 'features'}"
            )
        found[name] = load_network(file, weights=config.net_weights, any_kind=True, **place_of(config))
    return found
