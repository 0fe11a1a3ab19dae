"""The kind ``slice``: images of a fold, transforms, loaders, the trial before a run begins, and what it predicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.cli.arguments import given_options, refuse_given, to_dict
from common.cli.console import progress
from common.cli.values import Windows, parse_windows
from common.datasets.batch import finished_picture
from common.datasets.images import Transform
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler, TrainingImages
from common.datasets.sampling import build_sampler
from common.errors import UsageError, WorkError
from common.models.facts import normalizes_single_values
from common.training import distributed
from common.training.hardware import training_loader_workers
from common.transforms import Pipeline, check_same_scale, find_transform, load_pipeline, pipeline_from_dict
from common.transforms.device import DevicePart, device_refusal
from config import TrainConfig
from rsna.kinds.kind import ExportForm, Kind, Probabilities, TrainedNetwork, TrainingData, dataset_folder_of
from rsna_dataset import (
    DATASET_INFO,
    LABELS,
    RSNADataset,
    dataset_folder,
    read_dataset_info,
    read_fold,
    read_metadata,
    select_rows,
)
from rsna_model import build_model, build_timm_model
from rsna_network import prediction_frame

logger = logging.getLogger(__name__)

TRIAL_IMAGES = 8
EXPORT_IMAGES = 8


class SliceKind(Kind):
    """A network that sees slices one by one: a timm model over pictures."""

    noun = "a slice network"
    sees_pictures = True
    has_ways = True
    gives_features = True

    def build_data(self, config: TrainConfig, device: torch.device) -> TrainingData:
        """Read fold and transforms and build the loaders; UsageError where they don't fit each other."""
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

    def build_model(self, config: TrainConfig, channels: int, *, starting_weights: bool = True) -> nn.Module:
        """See :func:`rsna_model.build_model`."""
        return build_model(config, channels, starting_weights=starting_weights)

    def model_name(self, config: TrainConfig) -> str:
        """Return timm's name."""
        return config.net_model

    def check_training(self, config: TrainConfig, data: TrainingData, model: nn.Module) -> None:
        """Raise UsageError for batches of one image where a batch norm would see single values: no variance."""
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
        """Return probabilities of ``rows``; it says nothing of studies."""
        loader = build_loader(dataset_folder_of(trained), rows, pipeline, trained.config, workers)
        return prediction_frame(trained.network.predict(progress(loader, desc=label, unit="batch"))), None

    def export_form(self, trained: TrainedNetwork) -> ExportForm:
        """Return the model as it is, checked on some of the dataset's images."""
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
    """Return some of the dataset's images, evenly spread, as the network gets them: (B, C, H, W)."""
    rows = read_metadata(dataset_folder_of(trained))
    chosen = rows.iloc[np.linspace(0, len(rows) - 1, min(EXPORT_IMAGES, len(rows))).round().astype(int)]
    dataset = seen_pictures(trained, chosen)
    return torch.from_numpy(np.stack([dataset[index].image for index in range(len(dataset))]))


def picture_metadata(trained: TrainedNetwork, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return what another program needs to know to make pictures, in JSON's types."""
    options = to_dict(trained.config)
    return {
        "input": list(shape),
        "image_size": options["data_image_size"],
        "windows": options["data_windows"],
        "neighbours_each_side": options["data_context"],
        "transform": trained.pipeline.document,
    }


def checkpoint_pipeline(checkpoint: Mapping[str, Any], config: TrainConfig, weight_file: Path) -> Pipeline:
    """Return the validation transform of a checkpoint whose network sees pictures; WorkError where it has none."""
    if "valid" not in checkpoint["transforms"]:
        raise WorkError(f"{weight_file}: the checkpoint lacks the validation transform; use another one of the run")
    windows, windowed = pipeline_windows(dataset_folder(config.data_input_folder, config.data_dataset), config)
    source = f"{weight_file} (valid transform)"
    return pipeline_from_dict(checkpoint["transforms"]["valid"], source, windows, **seen_by(config, windowed))


def place_transform(pipeline: Pipeline, config: TrainConfig, device: torch.device) -> Pipeline | DevicePart:
    """Return what the loading processes do of a pipeline: all, or the draws alone for a device that does the rest.

    A pipeline with a step that has no form for batches stays whole, with a line that names the step.
    """
    if not transforms_on_device(config, device):
        return pipeline
    refusal = device_refusal(pipeline)
    if refusal is None:
        return DevicePart(pipeline)
    logger.warning("%s: computed on the CPU: %s", pipeline.name, refusal)
    return pipeline


def check_transform_device(config: TrainConfig, device: torch.device) -> None:
    """Raise UsageError where a training's transforms are to be computed on a GPU that isn't there."""
    if config.data_transform_device == "cuda" and device.type != "cuda":
        raise UsageError("--data_transform_device=cuda needs a GPU and there is none here; use auto or cpu")


def transforms_on_device(config: TrainConfig, device: torch.device) -> bool:
    """Say whether transforms are computed in whole batches where the model computes."""
    return device.type == "cuda" and config.data_transform_device != "cpu"


def trial_indices(folder: Path, rows: pd.DataFrame, config: TrainConfig) -> Sequence[int]:
    """Return which of ``rows`` to try before the run: the first, or with --data_image_size=0 one of each size."""
    if config.data_image_size:
        return [0]
    sizes = read_metadata(folder)[["rows", "columns"]].reindex(rows.index)
    return np.flatnonzero(~sizes.duplicated())[:TRIAL_IMAGES].tolist()


def check_trial_images(flag: str, dataset: RSNADataset, indices: Sequence[int]) -> None:
    """Load images through the whole pipeline, so that what would end the run later ends it before it begins.

    Each step of the pipeline works on each image once, whatever its probability. Raises UsageError where one can't take
    it, for values that are not finite, and for sizes that can't stand in one batch.
    """
    found: dict[tuple[int, ...], str] = {}
    for index in indices:
        image_id = str(dataset.image_ids[index])
        dataset.pipeline.trial(dataset.stored(index))
        picture = finished_picture(dataset, index)
        if not picture.isfinite().all():
            raise UsageError(f"{flag}: {dataset.pipeline.name} gives values that are not finite")
        found.setdefault(tuple(picture.shape[1:]), image_id)
    if len(found) > 1:
        listing = ", ".join(f"{rows}x{columns} ({image_id})" for (rows, columns), image_id in found.items())
        raise UsageError(
            f"--data_image_size=0: the pictures have different sizes, which can't stand in one batch: {listing}; give "
            f"a size (--data_image_size={max(map(max, found))} keeps all detail), or a transform file that makes them "
            "equal"
        )


def warn_of_other_size(train_set: RSNADataset, valid_set: RSNADataset) -> None:
    """Warn where training pictures have another size than validation pictures, which is seldom meant."""
    sizes = [" x ".join(map(str, finished_picture(dataset, 0).shape[1:])) for dataset in (train_set, valid_set)]
    if sizes[0] != sizes[1]:
        logger.warning(
            "training pictures are %s pixels and validation pictures %s: %s sets its own size; --data_image_size gives "
            "the other's",
            *sizes,
            train_set.pipeline.name,
        )


def fold_rows(config: TrainConfig) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """Return the dataset's folder, and the images of the fold that train and that validate (index ``id``)."""
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    rows = read_fold(folder, config.data_dataset, config.data_fold)
    return folder, *(select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))


def overfit_rows(rows: pd.DataFrame, batches: int, batch_size: int) -> pd.DataFrame:
    """Return the images of ``batches`` batches, evenly spread over ``rows``; UsageError where there are too few."""
    count = batches * batch_size
    if count > len(rows):
        most = len(rows) // batch_size
        raise UsageError(
            f"--tr_overfit={batches}: {count} images are more than the {len(rows)} of the training set"
            + f"; --tr_overfit={most} is the most that works" * (most > 0)
        )
    return rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def load_pipelines(folder: Path, config: TrainConfig) -> tuple[Pipeline, Pipeline]:
    """Load the transforms of training and validation; UsageError where they don't fit each other.

    Also for ``--data_windows`` where the pictures, or both files, have windows already.
    """
    windows, windowed = pipeline_windows(folder, config)
    options = seen_by(config, windowed)
    train = load_pipeline(find_transform(config.data_train_transform), windows, **options)
    valid = load_pipeline(find_transform(config.data_valid_transform), windows, **options)
    check_same_scale(train, valid)
    if windows != config.data_windows:
        refuse_given(config, ("data_windows",), f"means nothing to {folder}, whose pictures are windowed already")
    if train.own_window and valid.own_window:
        refuse_given(config, ("data_windows",), "means nothing to transform files with a DicomWindowShift of their own")
    return train, valid


def seen_by(config: TrainConfig, windowed: bool) -> dict[str, Any]:
    """Return what a pipeline needs to know of the pictures that it gets, beside their windows."""
    return {"windowed": windowed, "fuse": config.data_transform_fuse, "slices": 2 * config.data_context + 1}


def pipeline_windows(folder: Path, config: TrainConfig) -> tuple[Windows, bool]:
    """Return the windows of the pictures, and whether the dataset's pictures are windowed already."""
    info = read_dataset_info(folder)
    if info["image_form"] == "hu":
        return config.data_windows, False
    try:
        return parse_windows(info["windows"]), True
    except (KeyError, AttributeError, ValueError):
        raise WorkError(
            f"{folder / DATASET_INFO}: its windows are damaged; run python preprocessing.py again"
        ) from None


def build_loader(
    folder: Path, rows: pd.DataFrame, pipeline: Transform, config: TrainConfig, workers: int
) -> DataLoader:
    """Build a loader that gives every row once, in order."""
    dataset = picture_dataset(config, folder, rows, pipeline)
    dataset.check_files()
    sampler = SequentialSampler(len(dataset), config.seed)
    return make_loader(dataset, sampler, config.tr_batch_size, workers, drop_last=False, seed=config.seed)


def picture_dataset(config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Transform) -> RSNADataset:
    """Return images of a dataset as ``pipeline`` gives them to a network of this configuration."""
    return RSNADataset(folder, rows, pipeline, config.data_image_size, config.seed, config.data_context)


def seen_pictures(trained: TrainedNetwork, rows: pd.DataFrame) -> RSNADataset:
    """Return images of a dataset as a trained network sees them."""
    return picture_dataset(trained.config, dataset_folder_of(trained), rows, trained.pipeline)
