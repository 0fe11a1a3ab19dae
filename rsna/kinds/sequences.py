"""Sequence models on out-of-fold features: from a configuration to the series of a fold, and what a model predicts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from common.cli.arguments import given_options
from common.cli.console import progress
from common.cli.values import HOLDOUT
from common.datasets.batch import Batch
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from common.datasets.sequences import LengthSampler, SequenceDataset, Series, collate_sequences
from common.errors import UsageError, WorkError, list_some
from common.evaluation.metrics import constant_predictor, prevalences_of, probabilities
from common.experiments.folder import experiment_folder
from common.models.sequence import sequence_settings
from common.training import distributed
from config import TrainConfig
from rsna.kinds.features import FOLDERS, HOW, INFO_FILE, OUT_OF_FOLD, TEST, FeatureSet, read_features
from rsna.kinds.slices import TrainingData, select_rows
from rsna_dataset import LABEL_WEIGHTS, LABELS, dataset_folder, read_fold, read_metadata, rows_hash
from rsna_network import RSNASequenceNetwork, prediction_frame

IN_NO_FOLD = {"split": "test", "sample_type": HOLDOUT}  # a column of rows, and what stands there of such images


def build_sequences(config: TrainConfig) -> TrainingData:
    """Read fold and out-of-fold features and build the loaders of series; UsageError where they don't fit.

    The model learns from images of the other folds by features that their own folds' networks gave, and is validated
    on the fold's images by those of its network. No image is seen through a network that was trained on it; what
    remains of a leak is that networks of other folds have learnt from the labels of this one, as in all stacking.
    """
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    rows = read_fold(folder, config.data_dataset, config.data_fold)
    features = open_features(config, OUT_OF_FOLD)
    if str(config.data_fold) not in features.document["folds"]:
        known = ", ".join(features.document["folds"])
        raise UsageError(f"--data_fold={config.data_fold}: {feature_folder(config, OUT_OF_FOLD)} is of folds {known}")
    known_rows = rows_with_features(rows, features)
    train_rows, valid_rows = (select_rows(known_rows, split, config.dev_enabled) for split in ("train", "valid"))
    values = sequence_settings(config.seq_model, sequence_options(config))
    train_set = sequence_dataset(config, train_rows, features, values["seq_reverse"])
    prevalences = prevalences_of(train_rows[list(LABELS)])
    return TrainingData(
        training_series(config, train_set, collate_sequences, 0),
        sequence_loader(config, valid_rows, features),
        prevalences,
        constant_predictor(prevalences, valid_rows[list(LABELS)].to_numpy(), LABEL_WEIGHTS),
        {"features": {"sha256": features_hash(feature_folder(config, OUT_OF_FOLD))}},
        features.num_features,
        rows_hash(train_rows, valid_rows),
    )


def training_series(
    config: TrainConfig, dataset: Series, collate: Callable[[Sequence[Any]], Batch], workers: int
) -> DataLoader:
    """Build the loader of training series, by ``workers`` processes; UsageError where they don't fill one batch."""
    batch, processes = config.tr_batch_size, distributed.world_size()
    if len(dataset) < batch * processes:
        many = f" in each of {processes} processes" if processes > 1 else ""
        raise UsageError(
            f"--tr_batch_size={batch}{many} is larger than the {len(dataset)} training series of fold "
            f"{config.data_fold}: with --net_kind={config.net_kind} a batch is of series"
            + f"; --tr_batch_size={len(dataset) // processes} is the largest that works"
            * (len(dataset) >= processes)
        )
    sampler = LengthSampler(dataset.lengths, batch, config.seed, distributed.rank(), processes)
    return make_loader(dataset, sampler, batch, workers, drop_last=True, seed=config.seed, collate=collate)


def series_in_order(
    config: TrainConfig, dataset: Series, collate: Callable[[Sequence[Any]], Batch], workers: int
) -> DataLoader:
    """Build a loader that gives every series of ``dataset`` once, in one order."""
    return make_loader(
        dataset,
        SequentialSampler(len(dataset), config.seed),
        config.tr_batch_size,
        workers,
        drop_last=False,
        seed=config.seed,
        collate=collate,
        rows=dataset.lengths,
    )


def rows_with_features(rows: pd.DataFrame, features: FeatureSet) -> pd.DataFrame:
    """Return the fold's images that have features: a cross-validation may be of some folds only."""
    return rows[rows.index.isin(features.rows.index)]


def sequence_options(config: TrainConfig) -> dict[str, Any]:
    """Return the ``seq_…`` options of the model itself, None where not given."""
    return given_options(config, "seq_", "seq_model", "seq_features")


def features_parent(config: TrainConfig) -> Path:
    """Return the cross-validation's folder that ``--seq_features`` means: an experiment's id, or the folder."""
    named, path = config.output_dir / config.seq_features, Path(config.seq_features)
    if not named.is_dir() and not path.is_dir():
        experiment_folder(config.output_dir, config.seq_features, "--seq_features")  # says which there are
    return named if named.is_dir() else path


def feature_folder(config: TrainConfig, kind: str) -> Path:
    """Return the folder of features of a kind that ``--seq_features`` means."""
    return features_parent(config) / FOLDERS[kind]


def open_features(config: TrainConfig, kind: str) -> FeatureSet:
    """Read features of a kind, checked against the dataset; errors as :func:`rsna.kinds.features.read_features`."""
    dataset = dataset_folder(config.data_input_folder, config.data_dataset)
    return read_features(feature_folder(config, kind), dataset, kind)


def features_hash(folder: Path) -> str:
    """Return the hash of what describes a folder of features."""
    return hashlib.sha256((folder / INFO_FILE).read_bytes()).hexdigest()


def sequence_dataset(
    config: TrainConfig, rows: pd.DataFrame, features: FeatureSet, reverse: float = 0.0
) -> SequenceDataset:
    """Return the series of ``rows`` (index ``id``); UsageError where images of them have no features."""
    places = features.rows.index.get_indexer(rows.index)
    if (places < 0).any():
        missing = rows.index[places < 0]
        raise UsageError(
            f"--seq_features={config.seq_features}: has no features of {len(missing)} of {len(rows)} images "
            f"({list_some(missing)}); {HOW} anew"
        )
    return SequenceDataset(*series_of(config, rows), places, features.features, features.logits, reverse, config.seed)


def series_of(
    config: TrainConfig, rows: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Return ids, series, positions in mm, slice indices and, where known, labels of ``rows``; see :class:`Series`."""
    metadata = read_metadata(dataset_folder(config.data_input_folder, config.data_dataset)).reindex(rows.index)
    if metadata["series_id"].isna().any():
        raise WorkError(
            f"{config.data_dataset}: metadata.csv lacks images of the fold; run python preprocessing.py again"
        )
    labelled = set(LABELS) <= set(rows.columns) and bool(rows[list(LABELS)].notna().all(axis=None))
    return (
        rows.index.to_numpy(dtype=np.str_),
        metadata["series_id"].to_numpy(dtype=np.str_),
        metadata["position_mm"].to_numpy(),
        metadata["slice_index"].to_numpy(dtype=np.int64),
        rows[list(LABELS)].to_numpy(dtype=np.float32) if labelled else None,
    )


def sequence_loader(config: TrainConfig, rows: pd.DataFrame, features: FeatureSet) -> DataLoader:
    """Build a loader that gives every series of ``rows`` once, in one order."""
    return series_in_order(config, sequence_dataset(config, rows, features), collate_sequences, 0)


def predict_features(
    network: RSNASequenceNetwork, config: TrainConfig, rows: pd.DataFrame, features: FeatureSet | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the same as :func:`predict_series`, by ``features``: those of --seq_features where None."""
    return predict_series(network, prediction_loader(network, config, rows, features), rows, "predict")


def predict_series(
    network: RSNASequenceNetwork, loader: DataLoader, rows: pd.DataFrame, label: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return probabilities of ``rows``, whose series a loader gives, and of their whole studies; ``label``: of the bar.

    Slices (index ``id``, in the order of ``rows``) are seen beside their series' others; of several series of a study
    (index ``study_id``) each label has the highest.
    """
    slices, logits = network.predict_with_studies(progress(loader, desc=label, unit="batch"))
    data = loader.dataset
    study_ids = rows.loc[data.image_ids[data.order[data.starts]], "study_id"].to_numpy(dtype=str)
    studies = pd.DataFrame(probabilities(logits), columns=list(LABELS)).groupby(study_ids).max()
    return prediction_frame(slices).loc[rows.index], studies.rename_axis("study_id")


def prediction_loader(
    network: RSNASequenceNetwork, config: TrainConfig, rows: pd.DataFrame, features: FeatureSet | None = None
) -> DataLoader:
    """Return the series of ``rows``: where no ``features`` are given, images that no fold has by test features, others
    by out-of-fold ones.
    """
    if features is None:
        new = any(bool((rows[name] == part).all()) for name, part in IN_NO_FOLD.items() if name in rows)
        features = open_features(config, TEST if new else OUT_OF_FOLD)
    loader = sequence_loader(config, rows, features)
    check_width(network, config, loader.dataset)
    return loader


def check_width(network: RSNASequenceNetwork, config: TrainConfig, dataset: SequenceDataset) -> None:
    """Raise UsageError where the features are of another width than the model was trained on."""
    found, wanted = dataset.features.shape[1], network.model.num_features
    if found != wanted and network.model.inputs != "logits":
        raise UsageError(
            f"--seq_features={config.seq_features}: {found} features of each image where the model takes {wanted}"
        )
