"""Networks over whole series of pictures (--net_kind=study): from a configuration to their data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from common import distributed
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler
from common.datasets.sequences import LengthSampler, PictureSeries, collate_pictures
from common.errors import UsageError
from common.hardware import cpu_cores
from common.metrics import constant_predictor
from common.models.sequence import sequence_settings
from common.transforms import Pipeline
from config import TrainConfig
from rsna_data import (
    TrainingData,
    check_starting_weights,
    check_trial_images,
    load_pipelines,
    select_rows,
    trial_indices,
)
from rsna_dataset import LABEL_WEIGHTS, LABELS, RSNADataset, dataset_folder, read_fold, rows_hash
from rsna_sequence import sequence_options, series_of


def build_studies(config: TrainConfig) -> TrainingData:
    """Read fold and transforms and build the loaders of whole series; UsageError where they don't fit.

    Also where the starting weights are of a network that saw patients who validate.
    """
    if distributed.world_size() > 1:
        raise UsageError("--net_kind=study: one process trains it; start it without torchrun")
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    rows = read_fold(folder, config.data_dataset, config.data_fold)
    train_rows, valid_rows = (select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))
    hashed = rows_hash(train_rows, valid_rows)
    check_starting_weights(config, rows)
    train_pipeline, valid_pipeline = load_pipelines(folder, config)
    reverse = sequence_settings(config.seq_model, sequence_options(config))["seq_reverse"]
    train_set = picture_series(config, folder, train_rows, train_pipeline, reverse)
    if len(train_set) < config.tr_batch_size:
        raise UsageError(
            f"--tr_batch_size={config.tr_batch_size} is larger than the {len(train_set)} training series of fold "
            f"{config.data_fold}: with --net_kind=study a batch is of series"
        )
    valid_loader = study_loader(config, folder, valid_rows, valid_pipeline, loading_processes(config))
    for flag, data, part in (
        ("--data_train_transform", train_set, train_rows),
        ("--data_valid_transform", valid_loader.dataset, valid_rows),
    ):
        check_trial_images(flag, data.pictures, trial_indices(folder, part, config))
    train_loader = make_loader(
        train_set,
        LengthSampler(train_set.lengths, config.tr_batch_size, config.seed),
        config.tr_batch_size,
        loading_processes(config),
        drop_last=True,
        seed=config.seed,
        collate=collate_pictures,
    )
    prevalences = train_rows[list(LABELS)].to_numpy(dtype=np.float64).mean(axis=0)
    return TrainingData(
        train_loader,
        valid_loader,
        prevalences,
        constant_predictor(prevalences, valid_rows[list(LABELS)].to_numpy(), LABEL_WEIGHTS),
        {"train": train_pipeline.document, "valid": valid_pipeline.document},
        train_pipeline.channels,
        hashed,
    )


def loading_processes(config: TrainConfig) -> int:
    """Return how many processes load pictures."""
    return 0 if cpu_cores(config.n_jobs) == 1 else 1


def picture_series(
    config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Pipeline, reverse: float = 0.0
) -> PictureSeries:
    """Return the series of ``rows`` (index ``id``) with their pictures; WorkError where files are missing."""
    pictures = RSNADataset(folder, rows, pipeline, config.data_image_size, config.seed, config.data_context)
    pictures.check_files()
    return PictureSeries(*series_of(config, rows), reverse, config.seed, pictures)


def study_loader(config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Pipeline, workers: int) -> DataLoader:
    """Build a loader that gives every series of ``rows`` once, in one order."""
    dataset = picture_series(config, folder, rows, pipeline)
    sampler = SequentialSampler(len(dataset), config.seed)
    batch = config.tr_batch_size
    return make_loader(dataset, sampler, batch, workers, drop_last=False, seed=config.seed, collate=collate_pictures)
