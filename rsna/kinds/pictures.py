"""Shared by all kinds that see pictures: images of a fold, transforms, loaders, and the trial before a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from common.cli.arguments import refuse_given
from common.cli.values import Windows, parse_windows
from common.datasets.batch import finished_picture
from common.datasets.images import Transform
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from common.errors import UsageError, WorkError
from common.transforms.device import DevicePart, device_refusal
from common.transforms.documents import find_transform
from common.transforms.pipeline import Pipeline, check_same_scale, load_pipeline, pipeline_from_dict
from config import TrainConfig
from rsna_dataset import (
    DATASET_INFO,
    RSNADataset,
    dataset_folder,
    read_dataset_info,
    read_fold,
    read_metadata,
    select_rows,
)

if TYPE_CHECKING:
    from rsna.kinds.kind import TrainedNetwork

logger = logging.getLogger(__name__)

TRIAL_IMAGES = 8  # at most so many are tried before a run


def checkpoint_pipeline(checkpoint: Mapping[str, Any], config: TrainConfig, weight_file: Path) -> Pipeline:
    """Return the validation transform in a checkpoint; WorkError if it has none."""
    if "valid" not in checkpoint["transforms"]:
        raise WorkError(f"{weight_file}: the checkpoint lacks the validation transform; use another one of the run")
    windows, windowed = pipeline_windows(dataset_folder(config.data_input_folder, config.data_dataset), config)
    source = f"{weight_file} (valid transform)"
    return pipeline_from_dict(checkpoint["transforms"]["valid"], source, windows, **seen_by(config, windowed))


def place_transform(pipeline: Pipeline, config: TrainConfig, device: torch.device) -> Pipeline | DevicePart:
    """Return the part of a pipeline that the loading processes run.

    On the CPU this is the whole pipeline. If the device transforms whole batches, the processes only draw the random
    numbers. A pipeline with a step that can't run on batches stays on the CPU, and a warning names the step.
    """
    if not transforms_on_device(config, device):
        return pipeline
    refusal = device_refusal(pipeline)
    if refusal is None:
        return DevicePart(pipeline)
    logger.warning("%s: computed on the CPU: %s", pipeline.name, refusal)
    return pipeline


def check_transform_device(config: TrainConfig, device: torch.device) -> None:
    """Raise UsageError for --data_transform_device=cuda without a GPU."""
    if config.data_transform_device == "cuda" and device.type != "cuda":
        raise UsageError("--data_transform_device=cuda needs a GPU and there is none here; use auto or cpu")


def transforms_on_device(config: TrainConfig, device: torch.device) -> bool:
    """Whether transforms run on whole batches on the model's device."""
    return device.type == "cuda" and config.data_transform_device != "cpu"


def trial_indices(folder: Path, rows: pd.DataFrame, config: TrainConfig) -> Sequence[int]:
    """Return the places of the rows to try before the run: the first, or with --data_image_size=0 one of each size."""
    if config.data_image_size:
        return [0]
    sizes = read_metadata(folder)[["rows", "columns"]].reindex(rows.index)
    return np.flatnonzero(~sizes.duplicated())[:TRIAL_IMAGES].tolist()


def check_trial_images(flag: str, dataset: RSNADataset, indices: Sequence[int]) -> None:
    """Try the pipeline on some images, so that a bad image or step is found before the run starts.

    Every step runs once on each image, whatever its probability. Raises UsageError if a step refuses an image, if
    values are not finite, or if pictures have different sizes, which can't form a batch.
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
    """Warn if training and validation pictures have different sizes, which is rarely intended."""
    sizes = [" x ".join(map(str, finished_picture(dataset, 0).shape[1:])) for dataset in (train_set, valid_set)]
    if sizes[0] != sizes[1]:
        logger.warning(
            "training pictures are %s pixels and validation pictures %s: %s sets its own size; --data_image_size gives "
            "the other's",
            *sizes,
            train_set.pipeline.name,
        )


def fold_rows(config: TrainConfig) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """Return the dataset's folder, and the fold's training and validation images (index ``id``)."""
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    rows = read_fold(folder, config.data_dataset, config.data_fold)
    return folder, *(select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))


def overfit_rows(rows: pd.DataFrame, batches: int, batch_size: int) -> pd.DataFrame:
    """Return enough images for ``batches`` batches, evenly spread over ``rows``; UsageError if there are too few."""
    count = batches * batch_size
    if count > len(rows):
        most = len(rows) // batch_size
        raise UsageError(
            f"--tr_overfit={batches}: {count} images are more than the {len(rows)} of the training set"
            + f"; --tr_overfit={most} is the most that works" * (most > 0)
        )
    return rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def load_pipelines(folder: Path, config: TrainConfig) -> tuple[Pipeline, Pipeline]:
    """Load the transforms of training and validation; UsageError if they don't fit each other.

    Also raise UsageError for ``--data_windows`` if the stored pictures or both files already have windows.
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
    """Return the arguments that describe the input of a pipeline, except its windows."""
    return {"windowed": windowed, "fuse": config.data_transform_fuse, "slices": 2 * config.data_context + 1}


def pipeline_windows(folder: Path, config: TrainConfig) -> tuple[Windows, bool]:
    """Return the windows of the pictures, and whether the dataset stores windowed pictures."""
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
    """Build a loader that yields every row once, in order."""
    dataset = picture_dataset(config, folder, rows, pipeline)
    dataset.check_files()
    sampler = SequentialSampler(len(dataset), config.seed)
    return make_loader(dataset, sampler, config.tr_batch_size, workers, drop_last=False, seed=config.seed)


def picture_dataset(config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Transform) -> RSNADataset:
    """Return the dataset of ``rows``, transformed by ``pipeline`` for a network of this configuration."""
    return RSNADataset(folder, rows, pipeline, config.data_image_size, config.seed, config.data_context)


def seen_pictures(trained: TrainedNetwork, rows: pd.DataFrame) -> RSNADataset:
    """Return the dataset of ``rows`` as a trained network sees them."""
    config = trained.config
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    return picture_dataset(config, folder, rows, trained.pipeline)
