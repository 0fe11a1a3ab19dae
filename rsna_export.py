"""A trained network as a file for other programs, checked on images of its own dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.arguments import to_dict
from common.datasets.sequences import SequenceSample, collate_sequences
from common.errors import UsageError
from common.files import check_output
from common.models.exporting import FORMATS, export_model
from common.models.sequence_layers import ForExport
from common.reports.page import NOTICE
from config import SEQUENCE, STUDY, ExportConfig
from rsna_dataset import LABELS, RSNADataset, read_metadata
from rsna_features import OUT_OF_FOLD
from rsna_network import SEQUENCE_INPUTS
from rsna_prediction import TrainedNetwork, check_features, dataset_folder_of, load_asked
from rsna_sequence import check_width, feature_folder, features_hash, open_features, sequence_dataset

IMAGES = 8
SERIES = 4


def export_network(config: ExportConfig) -> Path:
    """Write the network of a weight file in another form; return the file."""
    path = config.export_file or config.net_weight_file.with_suffix(FORMATS[config.export_format].suffix)
    trained = load_asked(config, config.net_weight_file)
    if trained.config.net_kind == STUDY:
        raise UsageError(
            f"{config.net_weight_file}: a network over whole series (--net_kind=study); only slice networks and "
            "sequence models are exported"
        )
    check_output("export_file", path)
    export = export_sequence_model if trained.config.net_kind == SEQUENCE else export_slice_network
    print(f"{FORMATS[config.export_format].summary}: {export(trained, path, config.export_format)}")
    print(NOTICE)
    return path


def export_slice_network(trained: TrainedNetwork, path: Path, file_format: str) -> str:
    """Write a network of pictures, checked on some of the dataset's; return what it takes and how near it is."""
    pictures = real_pictures(trained)
    metadata = export_metadata(trained, tuple(pictures.shape[1:]))
    difference = export_model(trained.network.model, {"image": pictures}, path, file_format, metadata)
    shape = " x ".join(map(str, pictures.shape[1:]))
    return (
        f"batches of {shape} to {len(LABELS)} logits\n"
        f"on {len(pictures)} images of {dataset_folder_of(trained)} the logits differ from torch's by "
        f"{difference:.1e} at most"
    )


def export_sequence_model(trained: TrainedNetwork, path: Path, file_format: str) -> str:
    """Write a sequence model, checked on series of the dataset; return what it takes and how near it is.

    Raises UsageError where the dataset has no two series of different lengths.
    """
    series = real_series(trained)
    together = collate_sequences(series).inputs
    difference = export_model(
        ForExport(trained.network.model),
        {name: together[name] for name in SEQUENCE_INPUTS},
        path,
        file_format,
        sequence_metadata(trained),
        {name: {0: "batch", 1: "slices"} for name in SEQUENCE_INPUTS},
        ("slice_logits", "study_logits"),
        [collate_sequences([one]).inputs for one in series],
    )
    lengths = sorted(len(one.image_ids) for one in series)
    return (
        f"batches of series to {len(LABELS)} logits of each slice and of the study\n"
        f"on {len(series)} series of {lengths[0]} to {lengths[-1]} slices of {dataset_folder_of(trained)}, padded "
        f"together and each alone, the logits differ from torch's by {difference:.1e} at most"
    )


def real_series(trained: TrainedNetwork) -> list[SequenceSample]:
    """Return some series by their out-of-fold features, from the shortest to the longest."""
    config = trained.config
    check_features(trained)
    features = open_features(config, OUT_OF_FOLD)
    rows = read_metadata(dataset_folder_of(trained))
    dataset = sequence_dataset(config, rows[rows.index.isin(features.rows.index)], features)
    check_width(trained.network, config, dataset)
    order = np.argsort(dataset.lengths, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(SERIES, len(order))).round().astype(int))
    if dataset.lengths.min() == dataset.lengths.max():
        raise UsageError(
            f"{dataset_folder_of(trained)}: all its series have {dataset.lengths.max()} slices, so that padding can't "
            "be checked; name another dataset by --data_dataset and --seq_features"
        )
    return [dataset[int(order[place])] for place in places]


def real_pictures(trained: TrainedNetwork) -> torch.Tensor:
    """Return some of the dataset's images, evenly spread, as the network gets them: (B, C, H, W)."""
    folder = dataset_folder_of(trained)
    rows = read_metadata(folder)
    chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).round().astype(int)]
    config = trained.config
    dataset = RSNADataset(folder, chosen, trained.pipeline, config.data_image_size, config.seed, config.data_context)
    return torch.from_numpy(np.stack([dataset[index].image for index in range(len(dataset))]))


def sequence_metadata(trained: TrainedNetwork) -> dict[str, Any]:
    """Return what another program needs to know to make a sequence model's inputs and read its outputs."""
    config = trained.config
    return {
        "notice": NOTICE,
        "labels": list(LABELS),
        "inputs": {
            "features": "(batch, slices, features): what the head of the slice network sees, each fold's map applied "
            "(features/alignment.npy: x @ matrix + offset), the mean of the folds",
            "logits": "(batch, slices, labels): of the slice network, the mean of the folds",
            "position_mm": "(batch, slices): places along the series, rising, minus their mean",
            "mask": "(batch, slices): true for slices, false for padding, which stands at the end",
        },
        "outputs": {"slice_logits": "(batch, slices, labels), 0 in padding", "study_logits": "(batch, labels)"},
        "output": "logits; a probability is 1 / (1 + exp(-logit))",
        "num_features": trained.network.model.num_features,
        "features_sha256": features_hash(feature_folder(config, OUT_OF_FOLD)),
        "model": config.seq_model,
        "weights": trained.weights,
        "iteration": trained.iteration,
    }


def export_metadata(trained: TrainedNetwork, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what another program needs to know to make pictures and to read the outputs, in JSON's types."""
    options = to_dict(trained.config)
    return {
        "notice": NOTICE,
        "labels": list(LABELS),
        "output": "logits; a probability is 1 / (1 + exp(-logit))",
        "input": list(shape),
        "image_size": options["data_image_size"],
        "windows": options["data_windows"],
        "neighbours_each_side": options["data_context"],
        "transform": trained.pipeline.document,
        "model": options["net_model"],
        "weights": trained.weights,
        "iteration": trained.iteration,
    }
