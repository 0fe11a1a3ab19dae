"""The kind ``study``: a slice network and a sequence model as one network, for the pictures of whole series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.datasets.batch import Batch
from common.datasets.images import Transform
from common.datasets.sequences import PictureSample, PictureSeries, collate_pictures
from common.errors import UsageError
from common.models.sequence_layers import in_series
from common.models.study_layers import StudyForExport, StudyNetwork
from common.training.hardware import training_loader_workers
from common.transforms.pipeline import Pipeline
from config import TrainConfig
from rsna.kinds.kind import ExportForm, Probabilities, TrainedNetwork, TrainingData, by, dataset_folder_of
from rsna.kinds.pictures import (
    check_transform_device,
    check_trial_images,
    checkpoint_pipeline,
    fold_rows,
    load_pipelines,
    picture_dataset,
    place_transform,
    trial_indices,
)
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
from rsna.kinds.slices import picture_metadata
from rsna_dataset import read_metadata
from rsna_model import build_slice_network, build_timm_model


class RSNAStudyNetwork(RSNASequenceNetwork):
    """The network for pictures of whole series, around :class:`common.models.study_layers.StudyNetwork`."""

    inputs: ClassVar[tuple[str, ...]] = ("image", "position_mm", "mask", "places")


class StudyKind(SeriesKind):
    """A slice network and a sequence model over its features, trained together on the pictures of whole series."""

    network = RSNAStudyNetwork
    noun = "a network over whole series"
    sees_pictures = True

    def build_data(self, config: TrainConfig, device: torch.device) -> TrainingData:
        """Read fold and transforms and build the loaders of whole series; UsageError if they don't fit."""
        folder, train_rows, valid_rows = fold_rows(config)
        check_transform_device(config, device)
        train_pipeline, valid_pipeline = (
            place_transform(pipeline, config, device) for pipeline in load_pipelines(folder, config)
        )
        workers, valid_workers = training_loader_workers(config.n_jobs, device)
        train_set = picture_series(config, folder, train_rows, train_pipeline, settings_of(config)["seq_reverse"])
        train_loader = training_series(config, train_set, collate_pictures, workers)
        valid_loader = study_loader(config, folder, valid_rows, valid_pipeline, valid_workers)
        for flag, data, part in (
            ("--data_train_transform", train_set, train_rows),
            ("--data_valid_transform", valid_loader.dataset, valid_rows),
        ):
            check_trial_images(flag, data.pictures, trial_indices(folder, part, config))
        documents = {"train": train_pipeline.document, "valid": valid_pipeline.document}
        loaders, rows = (train_loader, valid_loader), (train_rows, valid_rows)
        return TrainingData.of(*loaders, *rows, documents, train_pipeline.channels, **self.learning(config))

    def build_architecture(self, config: TrainConfig, channels: int) -> nn.Module:
        """Build slice network and sequence model as one model."""
        return join_networks(config, build_timm_model(config, channels))

    def build_model(self, config: TrainConfig, channels: int, prevalences: npt.ArrayLike | None) -> nn.Module:
        """Build both as one model; the slice network gets its starting weights, and --net_freeze is applied."""
        slices = build_slice_network(config, channels, prevalences)
        if config.net_freeze == "backbone":
            slices.requires_grad_(False)  # with its head: the sequence model builds on its logits
        return join_networks(config, slices)

    def model_name(self, config: TrainConfig) -> str:
        """Return both names."""
        return f"{config.net_model} and {config.seq_model}"

    def describe_sample(self, batch: Batch, seen: Tensor) -> str:
        """Describe a batch of one series in words."""
        return f"a series of {len(batch)} slices x {by(seen.shape[1:])}"

    def load_pipeline(self, checkpoint: Mapping[str, Any], config: TrainConfig, weight_file: Path) -> Pipeline | None:
        """Return the validation transform of a checkpoint."""
        return checkpoint_pipeline(checkpoint, config, weight_file)

    def slice_network(self, model: nn.Module) -> nn.Module:
        """Return the slice network."""
        return model.slices

    def predict(
        self, trained: TrainedNetwork, rows: pd.DataFrame, pipeline: Transform | None, workers: int, label: str
    ) -> Probabilities:
        """Return the probabilities of ``rows``, which must be whole series, and of their studies."""
        loader = study_loader(trained.config, dataset_folder_of(trained), rows, pipeline, workers)
        return predict_series(trained.network, loader, rows, label)

    def export_form(self, trained: TrainedNetwork) -> ExportForm:
        """Return the model for padded series of pictures, to be checked on two series of the dataset.

        The check computes all their pictures at once, so that more series would need too much memory.
        """
        folder, model = dataset_folder_of(trained), StudyForExport(trained.network.model)
        dataset = picture_series(trained.config, folder, read_metadata(folder), trained.pipeline)
        picture = picture_metadata(trained, tuple(padded_pictures([dataset[0]])["image"].shape[2:]))
        shape = ", ".join(map(str, picture.pop("input")))
        names = {"image": f"(batch, slices, {shape}): the pictures of whole series, in the order of their places"}
        metadata = picture | {"inputs": names | PLACES, "model": self.model_name(trained.config)}
        return series_form(model, dataset, 2, padded_pictures, metadata, folder)


def padded_pictures(samples: Sequence[PictureSample]) -> dict[str, Tensor]:
    """Return the inputs of an exported study network: ``image`` (B, L, C, H, W), 0 in padding, positions and mask."""
    inputs = collate_pictures(samples).inputs
    image = in_series(inputs["image"], inputs["places"], inputs["mask"].shape)
    return {"image": image, "position_mm": inputs["position_mm"], "mask": inputs["mask"]}


def join_networks(config: TrainConfig, slices: nn.Module) -> nn.Module:
    """Join the slice network with a sequence model over it; UsageError if its head is no linear layer."""
    head = slices.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UsageError(
            f"--net_kind=study: the head of {config.net_model} is no linear layer, so that it can't be used"
        )
    return StudyNetwork(slices, build_sequence(config, head.in_features), config.study_chunk)


def picture_series(
    config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Transform, reverse: float = 0.0
) -> PictureSeries:
    """Return the series of ``rows`` (index ``id``) with their pictures; WorkError if files are missing."""
    pictures = picture_dataset(config, folder, rows, pipeline)
    pictures.check_files()
    return PictureSeries(*series_of(config, rows), reverse, config.seed, pictures, study_labels_of(rows))


def study_loader(
    config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Transform, workers: int
) -> DataLoader:
    """Build a loader that yields every series of ``rows`` once, in order."""
    return series_in_order(config, picture_series(config, folder, rows, pipeline), collate_pictures, workers)
