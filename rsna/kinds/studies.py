"""Networks over whole series of pictures (--net_kind=study): from a configuration to their data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader

from common.datasets.sequences import PictureSeries, collate_pictures
from common.evaluation.metrics import constant_predictor, prevalences_of
from common.models.sequence import sequence_settings
from common.training.hardware import training_loader_workers
from config import TrainConfig
from rsna.kinds.sequences import sequence_options, series_in_order, series_of, training_series
from rsna.kinds.slices import (
    Placed,
    TrainingData,
    check_transform_device,
    check_trial_images,
    load_pipelines,
    place_transform,
    select_rows,
    trial_indices,
)
from rsna_dataset import LABEL_WEIGHTS, LABELS, RSNADataset, dataset_folder, read_fold, rows_hash


def build_studies(config: TrainConfig, device: torch.device) -> TrainingData:
    """Read fold and transforms and build the loaders of whole series; UsageError where they don't fit."""
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    rows = read_fold(folder, config.data_dataset, config.data_fold)
    train_rows, valid_rows = (select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))
    hashed = rows_hash(train_rows, valid_rows)
    check_transform_device(config, device)
    train_pipeline, valid_pipeline = (
        place_transform(pipeline, config, device) for pipeline in load_pipelines(folder, config)
    )
    workers, valid_workers = training_loader_workers(config.n_jobs, device)
    reverse = sequence_settings(config.seq_model, sequence_options(config))["seq_reverse"]
    train_set = picture_series(config, folder, train_rows, train_pipeline, reverse)
    train_loader = training_series(config, train_set, collate_pictures, workers)
    valid_loader = study_loader(config, folder, valid_rows, valid_pipeline, valid_workers)
    for flag, data, part in (
        ("--data_train_transform", train_set, train_rows),
        ("--data_valid_transform", valid_loader.dataset, valid_rows),
    ):
        check_trial_images(flag, data.pictures, trial_indices(folder, part, config))
    prevalences = prevalences_of(train_rows[list(LABELS)])
    return TrainingData(
        train_loader,
        valid_loader,
        prevalences,
        constant_predictor(prevalences, valid_rows[list(LABELS)].to_numpy(), LABEL_WEIGHTS),
        {"train": train_pipeline.document, "valid": valid_pipeline.document},
        train_pipeline.channels,
        hashed,
    )


def picture_series(
    config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Placed, reverse: float = 0.0
) -> PictureSeries:
    """Return the series of ``rows`` (index ``id``) with their pictures; WorkError where files are missing."""
    pictures = RSNADataset(folder, rows, pipeline, config.data_image_size, config.seed, config.data_context)
    pictures.check_files()
    return PictureSeries(*series_of(config, rows), reverse, config.seed, pictures)


def study_loader(config: TrainConfig, folder: Path, rows: pd.DataFrame, pipeline: Placed, workers: int) -> DataLoader:
    """Build a loader that gives every series of ``rows`` once, in one order."""
    return series_in_order(config, picture_series(config, folder, rows, pipeline), collate_pictures, workers)
