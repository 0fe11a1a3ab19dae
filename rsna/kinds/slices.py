"""The kind ``slice``: a network for single slices."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from common.cli.arguments import given_options, to_dict
from common.cli.console import progress
from common.datasets.images import Transform
from common.datasets.loaders import make_loader
from common.datasets.samplers import TrainingImages
from common.datasets.sampling import build_sampler
from common.errors import UsageError, WorkError
from common.models.facts import normalizes_single_values
from common.training import distributed
from common.training.hardware import training_loader_workers
from common.transforms.pipeline import Pipeline
from config import TrainConfig
from rsna.kinds.kind import (
    ExportForm,
    Kind,
    Probabilities,
    TrainedNetwork,
    TrainingData,
    dataset_folder_of,
)
from rsna.kinds.pictures import (
    build_loader,
    check_transform_device,
    check_trial_images,
    checkpoint_pipeline,
    fold_rows,
    load_pipelines,
    overfit_rows,
    picture_dataset,
    place_transform,
    seen_pictures,
    trial_indices,
    warn_of_other_size,
)
from rsna_dataset import LABELS, read_metadata
from rsna_model import build_model, build_timm_model
from rsna_network import prediction_frame

logger = logging.getLogger(__name__)

EXPORT_IMAGES = 8


class SliceKind(Kind):
    """A network for single slices: a timm model over pictures."""

    noun = "a slice network"
    sees_pictures = True
    has_ways = True
    gives_features = True

    def build_data(self, config: TrainConfig, device: torch.device) -> TrainingData:
        """Read fold and transforms and build the loaders; UsageError if they don't fit each other."""
        folder, train_rows, valid_rows = fold_rows(config)
        if config.tr_overfit:
            train_rows = valid_rows = overfit_rows(train_rows, config.tr_overfit, config.tr_batch_size)
        if len(train_rows) < config.tr_batch_size:
            raise UsageError(
                f"--tr_batch_size={config.tr_batch_size} is larger than the {len(train_rows)} training images of fold "
                f"{config.data_fold}{' with --dev_enabled=1' if config.dev_enabled else ''}"
                + f"; --tr_batch_size={len(train_rows)} is the largest that works"
                * (len(train_rows) > 0)
            )
        if valid_rows.empty:
            raise WorkError(
                f"{folder}: fold {config.data_fold} has no validation images; run python preprocessing.py again"
            )
        check_transform_device(config, device)
        train_pipeline, valid_pipeline = load_pipelines(folder, config)
        if config.tr_overfit:
            train_pipeline = valid_pipeline  # no augmentation: the images are to be learnt by heart
        train_pipeline, valid_pipeline = (
            place_transform(pipeline, config, device) for pipeline in (train_pipeline, valid_pipeline)
        )
        train_set = picture_dataset(config, folder, train_rows, train_pipeline)
        images = TrainingImages(
            train_set.image_ids,
            train_set.targets,
            LABELS,
            train_rows["study_id"].to_numpy(dtype=str),
            config.seed,
            distributed.rank(),
            distributed.world_size(),
            distributed.gather if distributed.world_size() > 1 else None,
        )
        sampler = build_sampler(config.data_sampler, given_options(config, "sampler_"), images)
        train_set.check_files()
        workers, valid_workers = training_loader_workers(config.n_jobs, device)
        train_loader = make_loader(train_set, sampler, config.tr_batch_size, workers, drop_last=True, seed=config.seed)
        valid_loader = build_loader(folder, valid_rows, valid_pipeline, config, valid_workers)
        check_trial_images("--data_train_transform", train_set, trial_indices(folder, train_rows, config))
        check_trial_images("--data_valid_transform", valid_loader.dataset, trial_indices(folder, valid_rows, config))
        warn_of_other_size(train_set, valid_loader.dataset)
        documents = {"train": train_pipeline.document, "valid": valid_pipeline.document}
        return TrainingData.of(train_loader, valid_loader, train_rows, valid_rows, documents, train_pipeline.channels)

    def build_architecture(self, config: TrainConfig, channels: int) -> nn.Module:
        """Build the timm model."""
        return build_timm_model(config, channels)

    def build_model(self, config: TrainConfig, channels: int, prevalences: npt.ArrayLike | None) -> nn.Module:
        """See :func:`rsna_model.build_model`."""
        return build_model(config, channels, prevalences)

    def model_name(self, config: TrainConfig) -> str:
        """Return timm's name."""
        return config.net_model

    def check_training(self, config: TrainConfig, data: TrainingData, model: nn.Module) -> None:
        """Raise UsageError for batches of one image if a batch norm would see single values, which have no variance."""
        if config.tr_batch_size > 1 or config.tr_sync_bn:
            return
        loader = data.train_loader
        picture = loader.collate_fn([loader.dataset[0]]).finished().inputs["image"]
        if normalizes_single_values(model, picture):
            height, width = picture.shape[2:]
            raise UsageError(
                f"--tr_batch_size=1: {config.net_model} normalizes over maps of 1 x 1 for pictures of {height} x "
                f"{width}, and one value has no variance; use 2 or more, a larger --data_image_size, or "
                "--net_freeze=norms"
            )

    def load_pipeline(self, checkpoint: Mapping[str, Any], config: TrainConfig, weight_file: Path) -> Pipeline | None:
        """Return the validation transform of a checkpoint."""
        return checkpoint_pipeline(checkpoint, config, weight_file)

    def predict(
        self, trained: TrainedNetwork, rows: pd.DataFrame, pipeline: Transform | None, workers: int, label: str
    ) -> Probabilities:
        """Return the probabilities of ``rows``, and None for their studies."""
        loader = build_loader(dataset_folder_of(trained), rows, pipeline, trained.config, workers)
        return prediction_frame(trained.network.predict(progress(loader, desc=label, unit="batch"))), None

    def export_form(self, trained: TrainedNetwork) -> ExportForm:
        """Return the model as it is, to be checked on some images of the dataset."""
        pictures = real_pictures(trained)
        shape = tuple(pictures.shape[1:])
        return ExportForm(
            trained.network.model,
            {"image": pictures},
            picture_metadata(trained, shape) | {"model": self.model_name(trained.config)},
            f"batches of {' x '.join(map(str, shape))} to {len(LABELS)} logits",
            f"{len(pictures)} images of {dataset_folder_of(trained)}",
        )


def real_pictures(trained: TrainedNetwork) -> torch.Tensor:
    """Return some images of the dataset, evenly spread, as the network gets them: (B, C, H, W)."""
    rows = read_metadata(dataset_folder_of(trained))
    chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(EXPORT_IMAGES, len(rows))).round().astype(int)]
    dataset = seen_pictures(trained, chosen)
    return torch.from_numpy(np.stack([dataset[index].image for index in range(len(dataset))]))


def picture_metadata(trained: TrainedNetwork, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what another program must know to prepare pictures, in JSON's types."""
    options = to_dict(trained.config)
    return {
        "input": list(shape),
        "image_size": options["data_image_size"],
        "windows": options["data_windows"],
        "neighbours_each_side": options["data_context"],
        "transform": trained.pipeline.document,
    }
