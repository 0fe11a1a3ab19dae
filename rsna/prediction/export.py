"""A trained network as a file for other programs, checked on images of its own dataset."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.checkpoint import DESCRIPTIVE_KEYS, load_checkpoint, save_checkpoint
from common.cli.arguments import to_dict
from common.datasets.sequences import (
    PictureSample,
    PictureSeries,
    SequenceDataset,
    SequenceSample,
    Series,
    collate_pictures,
    collate_sequences,
)
from common.errors import UsageError
from common.files import check_output
from common.lineage import Lineage
from common.models.exporting import FORMATS, export_model
from common.models.sequence_layers import ForExport, in_series
from common.models.study_layers import StudyForExport
from common.reports.page import NOTICE
from config import SEQUENCE, STUDY
from rsna.kinds.features import OUT_OF_FOLD
from rsna.kinds.sequences import check_width, feature_folder, features_hash, open_features, sequence_dataset
from rsna.kinds.studies import picture_series
from rsna.prediction.options import CHECKPOINT, ExportConfig
from rsna.prediction.trained import TrainedNetwork, check_features, dataset_folder_of, load_asked
from rsna.training.lineage import checkpoint_lineage
from rsna_dataset import LABELS, RSNADataset, read_metadata
from rsna_model import model_name
from rsna_network import SEQUENCE_INPUTS

IMAGES = 8
LOGITS = "logits; a probability is 1 / (1 + exp(-logit))"


def export_network(config: ExportConfig) -> Path:
    """Write the network of a weight file in another form; return the file."""
    if config.export_format == CHECKPOINT:
        return export_checkpoint(config)
    path = config.export_file or config.net_weight_file.with_suffix(FORMATS[config.export_format].suffix)
    trained = load_asked(config, config.net_weight_file)
    check_output("export_file", path)
    export = export_over_series if trained.config.net_kind in EXPORTED_SERIES else export_slice_network
    lineage = known_lineage(config)
    print(f"{FORMATS[config.export_format].summary}: {export(trained, path, config.export_format, lineage)}")
    print(f"{lineage_line(lineage)}\n{NOTICE}")
    return path


def export_checkpoint(config: ExportConfig) -> Path:
    """Write the weights with all that predicting needs, and no state of a run, for this program elsewhere."""
    path = config.export_file or config.net_weight_file.with_name(f"{config.net_weight_file.stem}_shared.pt")
    checkpoint = load_checkpoint(config.net_weight_file)
    lineage = known_lineage(config)
    check_output("export_file", path)
    kept = {key: value for key, value in checkpoint.items() if key in DESCRIPTIVE_KEYS and key != "lineage"}
    save_checkpoint(path, kept if lineage is None else kept | {"lineage": lineage.state()})
    print(f"weights for this program\n{lineage_line(lineage)}\n{NOTICE}")
    return path


def known_lineage(config: ExportConfig) -> Lineage | None:
    """Return what the network learnt from where the file shall say it and anybody knows it."""
    if not config.lineage:
        return None
    checkpoint = load_checkpoint(config.net_weight_file)
    place = config.data_input_folder or Path(str(checkpoint["config"].get("data_input_folder", "input")))
    lineage = checkpoint_lineage(checkpoint, str(config.net_weight_file), place)
    return None if lineage.lost else lineage


def lineage_line(lineage: Lineage | None) -> str:
    """Say whether the file tells what the network learnt from."""
    if lineage is None:
        return "without lineage: the file doesn't say what it learnt from, and can't be kept from being judged by that"
    return (
        f"with lineage: hashes of {len(lineage.pictures)} pictures that it learnt from; whoever has the file and a "
        "scan can tell whether the scan is among them (--lineage=0 leaves it out)"
    )


def plain_lineage(lineage: Lineage | None) -> dict[str, Any]:
    """Return a lineage in JSON's types: sorted unsigned 64-bit numbers, little endian, as base64; none: nothing."""
    if lineage is None:
        return {}

    def text(values: np.ndarray) -> str:
        return base64.b64encode(values.astype("<u8").tobytes()).decode("ascii")

    names = {key: text(values) for key, values in lineage.names.items()}
    return {"lineage": {"pictures": text(lineage.pictures), "names": names, "unknown": list(lineage.unknown)}}


def export_slice_network(trained: TrainedNetwork, path: Path, file_format: str, lineage: Lineage | None) -> str:
    """Write a network of pictures, checked on some of the dataset's; return what it takes and how near it is."""
    pictures = real_pictures(trained)
    metadata = export_metadata(trained, tuple(pictures.shape[1:])) | plain_lineage(lineage)
    difference = export_model(trained.network.model, {"image": pictures}, path, file_format, metadata)
    shape = " x ".join(map(str, pictures.shape[1:]))
    return (
        f"batches of {shape} to {len(LABELS)} logits\n"
        f"on {len(pictures)} images of {dataset_folder_of(trained)} the logits differ from torch's by "
        f"{difference:.1e} at most"
    )


@dataclass(frozen=True)
class ExportedSeries:
    """How a kind of network over series is exported.

    ``model`` makes of the network one that takes padded series; ``real`` gives the dataset's series; ``inputs`` makes
    what the model takes of some of them; ``metadata`` as of :func:`export_metadata`; ``checked_on``: how many series.
    """

    model: Callable[[nn.Module], nn.Module]
    real: Callable[[TrainedNetwork], Series]
    inputs: Callable[[Sequence[Any]], dict[str, Tensor]]
    metadata: Callable[[TrainedNetwork, Mapping[str, Tensor]], dict[str, Any]]
    checked_on: int


def export_over_series(trained: TrainedNetwork, path: Path, file_format: str, lineage: Lineage | None) -> str:
    """Write a network over series, checked on some of the dataset's; return what it takes and how near it is.

    Raises UsageError where the dataset has no two series of different lengths.
    """
    kind = EXPORTED_SERIES[trained.config.net_kind]
    series = shortest_to_longest(kind.real(trained), kind.checked_on, dataset_folder_of(trained))
    together = kind.inputs(series)
    difference = export_model(
        kind.model(trained.network.model),
        together,
        path,
        file_format,
        kind.metadata(trained, together) | plain_lineage(lineage),
        {name: {0: "batch", 1: "slices"} for name in together},
        ("slice_logits", "study_logits"),
        [kind.inputs([one]) for one in series],
    )
    lengths = [int(length) for length in together["mask"].sum(dim=1)]
    return (
        f"batches of series to {len(LABELS)} logits of each slice and of the study\n"
        f"on {len(series)} series of {min(lengths)} to {max(lengths)} slices of {dataset_folder_of(trained)}, padded "
        f"together and each alone, the logits differ from torch's by {difference:.1e} at most"
    )


def shortest_to_longest(dataset: Series, count: int, folder: Path) -> list[Any]:
    """Return at most ``count`` series of a dataset, evenly spread from the shortest to the longest."""
    order = np.argsort(dataset.lengths, kind="stable")
    if dataset.lengths.min() == dataset.lengths.max():
        raise UsageError(
            f"{folder}: all its series have {dataset.lengths.max()} slices, so that padding can't be checked; name "
            "another dataset by --data_dataset (of a sequence model by --seq_features too)"
        )
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [dataset[int(order[place])] for place in places]


def feature_series(trained: TrainedNetwork) -> SequenceDataset:
    """Return all series of the dataset by their out-of-fold features."""
    config = trained.config
    check_features(trained)
    features = open_features(config, OUT_OF_FOLD)
    rows = read_metadata(dataset_folder_of(trained))
    dataset = sequence_dataset(config, rows[rows.index.isin(features.rows.index)], features)
    check_width(trained.network, config, dataset)
    return dataset


def all_pictures(trained: TrainedNetwork) -> PictureSeries:
    """Return all series of pictures of the dataset."""
    folder = dataset_folder_of(trained)
    return picture_series(trained.config, folder, read_metadata(folder), trained.pipeline)


def padded_features(samples: Sequence[SequenceSample]) -> dict[str, Tensor]:
    """Return what a sequence model takes of series."""
    batch = collate_sequences(samples)
    return {name: batch.inputs[name] for name in SEQUENCE_INPUTS}


def padded_pictures(samples: Sequence[PictureSample]) -> dict[str, Tensor]:
    """Return what an exported study network takes of series: ``image`` (B, L, C, H, W), 0 in padding, and the rest."""
    inputs = collate_pictures(samples).inputs
    image = in_series(inputs["image"], inputs["places"], inputs["mask"].shape)
    return {"image": image, "position_mm": inputs["position_mm"], "mask": inputs["mask"]}


def real_pictures(trained: TrainedNetwork) -> torch.Tensor:
    """Return some of the dataset's images, evenly spread, as the network gets them: (B, C, H, W)."""
    folder = dataset_folder_of(trained)
    rows = read_metadata(folder)
    chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).round().astype(int)]
    config = trained.config
    dataset = RSNADataset(folder, chosen, trained.pipeline, config.data_image_size, config.seed, config.data_context)
    return torch.from_numpy(np.stack([dataset[index].image for index in range(len(dataset))]))


PLACES = {
    "position_mm": "(batch, slices): places along the series, rising, minus their mean",
    "mask": "(batch, slices): true for slices, false for padding, which stands at the end",
}
SERIES_OUTPUTS = {"slice_logits": "(batch, slices, labels), 0 in padding", "study_logits": "(batch, labels)"}


def sequence_metadata(trained: TrainedNetwork, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what another program needs to know to make a sequence model's inputs and read its outputs."""
    config = trained.config
    return {
        "notice": NOTICE,
        "labels": list(LABELS),
        "inputs": {
            "features": "(batch, slices, features): what the head of the slice network sees, each fold's map applied "
            "(features/alignment.npy: x @ matrix + offset), the mean of the folds",
            "logits": "(batch, slices, labels): of the slice network, the mean of the folds",
            **PLACES,
        },
        "outputs": SERIES_OUTPUTS,
        "output": LOGITS,
        "num_features": trained.network.model.num_features,
        "features_sha256": features_hash(feature_folder(config, OUT_OF_FOLD)),
        "model": config.seq_model,
        "weights": trained.weights,
        "iteration": trained.iteration,
    }


def study_metadata(trained: TrainedNetwork, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what another program needs to know to make a study network's inputs and read its outputs."""
    picture = export_metadata(trained, tuple(inputs["image"].shape[2:]))
    shape = ", ".join(map(str, picture.pop("input")))
    names = {"image": f"(batch, slices, {shape}): the pictures of whole series, in the order of their places", **PLACES}
    return picture | {"inputs": names, "outputs": SERIES_OUTPUTS, "model": model_name(trained.config)}


def export_metadata(trained: TrainedNetwork, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what another program needs to know to make pictures and to read the outputs, in JSON's types."""
    options = to_dict(trained.config)
    return {
        "notice": NOTICE,
        "labels": list(LABELS),
        "output": LOGITS,
        "input": list(shape),
        "image_size": options["data_image_size"],
        "windows": options["data_windows"],
        "neighbours_each_side": options["data_context"],
        "transform": trained.pipeline.document,
        "model": options["net_model"],
        "weights": trained.weights,
        "iteration": trained.iteration,
    }


EXPORTED_SERIES = {
    SEQUENCE: ExportedSeries(ForExport, feature_series, padded_features, sequence_metadata, 4),
    # All pictures of a check go through at once, so that they are few.
    STUDY: ExportedSeries(StudyForExport, all_pictures, padded_pictures, study_metadata, 2),
}
