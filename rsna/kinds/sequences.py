"""The kind ``sequence``: a model over the slices of a series, on out-of-fold features of slice networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from common.cli.values import HOLDOUT
from common.datasets.batch import Batch
from common.datasets.images import Transform
from common.datasets.sequences import SequenceDataset, SequenceSample, collate_sequences
from common.errors import UsageError, WorkError, list_some
from common.models.sequence_layers import ForExport
from common.transforms.pipeline import Pipeline
from config import TrainConfig
from rsna.kinds.features import (
    HOW,
    INFO_FILE,
    OUT_OF_FOLD,
    TEST,
    FeatureSet,
    feature_folder,
    features_hash,
    features_parent,
    open_features,
    read_document,
)
from rsna.kinds.kind import ExportForm, Probabilities, TrainedNetwork, TrainingData, by, dataset_folder_of
from rsna.kinds.series import (
    PLACES,
    RSNASequenceNetwork,
    SeriesKind,
    build_sequence,
    predict_series,
    series_form,
    series_in_order,
    series_of,
    settings_of,
    study_labels_of,
    training_series,
)
from rsna_dataset import dataset_folder, read_fold, read_metadata, select_rows

IN_NO_FOLD = {"split": "test", "sample_type": HOLDOUT}  # columns and their values for images in no fold


class SequenceKind(SeriesKind):
    """A sequence model on features of slice networks, made only of images that these did not learn from."""

    noun = "a sequence model"
    sees = "features and no pictures"
    reads_features = True

    def build_data(self, config: TrainConfig, device: torch.device) -> TrainingData:
        """Read fold and out-of-fold features and build the loaders of series; UsageError if they don't fit.

        The features of each image come from the network of the image's own fold, which was not trained on it. One leak
        remains, as in all stacking: the networks of the other folds learnt from the labels of this one.
        """
        folder = dataset_folder(config.data_input_folder, config.data_dataset)
        rows = read_fold(folder, config.data_dataset, config.data_fold)
        features = open_features(config, OUT_OF_FOLD)
        if str(config.data_fold) not in features.document["folds"]:
            where, known = feature_folder(config, OUT_OF_FOLD), ", ".join(features.document["folds"])
            raise UsageError(f"--data_fold={config.data_fold}: {where} is of folds {known}")
        known_rows = rows_with_features(rows, features)
        train_rows, valid_rows = (select_rows(known_rows, split, config.dev_enabled) for split in ("train", "valid"))
        train_set = sequence_dataset(config, train_rows, features, settings_of(config)["seq_reverse"])
        return TrainingData.of(
            training_series(config, train_set, collate_sequences, 0),
            series_in_order(config, sequence_dataset(config, valid_rows, features), collate_sequences, 0),
            train_rows,
            valid_rows,
            {"features": {"sha256": features_hash(feature_folder(config, OUT_OF_FOLD))}},
            features.num_features,
            **self.learning(config),
        )

    def build_architecture(self, config: TrainConfig, channels: int) -> nn.Module:
        """Build the sequence model for ``channels`` features."""
        return build_sequence(config, channels)

    def model_name(self, config: TrainConfig) -> str:
        """Return the sequence model's name."""
        return config.seq_model

    def describe_sample(self, batch: Batch, seen: Tensor) -> str:
        """Describe a batch of one series in words."""
        return f"a series of {len(batch)} slices x {by(seen.shape[2:])}"

    def known_rows(self, config: TrainConfig, tables: Mapping[int, pd.DataFrame]) -> Mapping[int, pd.DataFrame]:
        """Return the images that have features."""
        features = open_features(config, OUT_OF_FOLD)
        return {number: rows_with_features(rows, features) for number, rows in tables.items()}

    def fold_options(self, config: TrainConfig) -> dict[str, Any]:
        """Return --seq_features as a path, since an id means another folder in a fold's run."""
        return {"seq_features": str(features_parent(config).resolve())}

    def saved_channels(self, state: Mapping[str, Tensor], pipeline: Pipeline | None, weight_file: Path) -> int:
        """Return the number of features that the weights expect; 0 for a model that sees only logits."""
        if "norm.weight" in state:
            return len(state["norm.weight"])
        if "project_logits.weight" in state:
            return 0
        raise WorkError(f"{weight_file}: holds weights of another model than its configuration names")

    def predict(
        self, trained: TrainedNetwork, rows: pd.DataFrame, pipeline: Transform | None, workers: int, label: str
    ) -> Probabilities:
        """Return the probabilities of ``rows`` and of their studies, from the features that --seq_features names."""
        check_features(trained)
        return predict_features(trained.network, trained.config, rows)

    def export_form(self, trained: TrainedNetwork) -> ExportForm:
        """Return the model for padded series, to be checked on series with out-of-fold features."""
        check_features(trained)
        config, folder = trained.config, dataset_folder_of(trained)
        features = open_features(config, OUT_OF_FOLD)
        dataset = sequence_dataset(config, rows_with_features(read_metadata(folder), features), features)
        check_width(trained.network, config, dataset)
        metadata = {
            "inputs": {
                "features": "(batch, slices, features): what the head of the slice network sees, each fold's map "
                "applied (features/alignment.npy: x @ matrix + offset), the mean of the folds",
                "logits": "(batch, slices, labels): of the slice network, the mean of the folds",
                **PLACES,
            },
            "num_features": trained.network.model.num_features,
            "features_sha256": features_hash(feature_folder(config, OUT_OF_FOLD)),
            "model": self.model_name(config),
        }
        return series_form(ForExport(trained.network.model), dataset, 4, padded_features, metadata, folder)


def padded_features(samples: Sequence[SequenceSample]) -> dict[str, Tensor]:
    """Return the inputs of a sequence model for some series, padded to one length."""
    batch = collate_sequences(samples)
    return {name: batch.inputs[name] for name in RSNASequenceNetwork.inputs}


def rows_with_features(rows: pd.DataFrame, features: FeatureSet) -> pd.DataFrame:
    """Return the images that have features; a cross-validation may cover only some folds."""
    return rows[rows.index.isin(features.rows.index)]


def sequence_dataset(
    config: TrainConfig, rows: pd.DataFrame, features: FeatureSet, reverse: float = 0.0
) -> SequenceDataset:
    """Return the series of ``rows`` (index ``id``); UsageError if images have no features."""
    places = features.rows.index.get_indexer(rows.index)
    if (places < 0).any():
        missing = rows.index[places < 0]
        raise UsageError(
            f"--seq_features={config.seq_features}: has no features of {len(missing)} of {len(rows)} images "
            f"({list_some(missing)}); {HOW} anew"
        )
    return SequenceDataset(
        *series_of(config, rows),
        places,
        features.features,
        features.logits,
        reverse,
        config.seed,
        study_labels_of(rows),
    )


def predict_features(
    network: RSNASequenceNetwork, config: TrainConfig, rows: pd.DataFrame, features: FeatureSet | None = None
) -> Probabilities:
    """Predict as :func:`predict_series`, from ``features``.

    None: from those of --seq_features, the test features for images in no fold and out-of-fold features for others.
    """
    if features is None:
        new = any(bool((rows[name] == part).all()) for name, part in IN_NO_FOLD.items() if name in rows)
        features = open_features(config, TEST if new else OUT_OF_FOLD)
    dataset = sequence_dataset(config, rows, features)
    check_width(network, config, dataset)
    return predict_series(network, series_in_order(config, dataset, collate_sequences, 0), rows, "predict")


def check_width(network: RSNASequenceNetwork, config: TrainConfig, dataset: SequenceDataset) -> None:
    """Raise UsageError if the features have another width than the model was trained on."""
    found, wanted = dataset.features.shape[1], network.model.num_features
    if found != wanted and network.model.inputs != "logits":
        raise UsageError(
            f"--seq_features={config.seq_features}: {found} features of each image where the model takes {wanted}"
        )


def check_features(trained: TrainedNetwork) -> None:
    """Raise UsageError if --seq_features names other features than the sequence model was trained on.

    Embeddings of other networks mean something else, even at the same width. Logits mean the same from any network.
    Also raise UsageError if the test features were not made together with the out-of-fold features.
    """
    config = trained.config
    if trained.features_sha256 is None or settings_of(config)["seq_inputs"] == "logits":
        return
    if config.data_dataset != trained.trained_on:
        raise UsageError(
            f"--data_dataset={config.data_dataset}: a sequence model knows features of {trained.trained_on} alone; "
            "predict.py --source=<DICOM files> --sequence=… predicts others, and evaluate.py --eval_file=<its "
            "slices.csv> judges that"
        )
    folder, new = (feature_folder(config, kind) for kind in (OUT_OF_FOLD, TEST))
    known = read_document(folder)
    if features_hash(folder) != trained.features_sha256:
        raise UsageError(
            f"--seq_features={config.seq_features}: the sequence model was trained on other features than those in "
            f"{folder}, whose embeddings mean something else; name its own, or train it anew"
        )
    if (new / INFO_FILE).is_file() and read_document(new).get("alignment_sha256") != known.get("alignment_sha256"):
        raise UsageError(f"{new}: of another making than {folder}; {HOW} anew")
