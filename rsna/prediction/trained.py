"""Trained networks: rebuild one from its checkpoint, predict images with it, and write the predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from common.checkpoint import BEST_WEIGHTS, chosen_weights, load_checkpoint, metric_key
from common.cli.arguments import from_dict
from common.cli.values import HOLDOUT
from common.errors import UsageError, WorkError
from common.evaluation.calibration import fit_temperatures
from common.evaluation.ensembling import combine
from common.evaluation.metrics import WEIGHTED
from common.files import check_output, write_csv, write_json
from common.foreign import read_json
from common.models.weights import build_within
from common.training.computing import keep_ends_exact
from common.training.hardware import (
    arrange_model,
    has_tf32,
    loader_workers,
    select_amp_dtype,
    select_device,
    this_device,
)
from common.training.ways import AUTO
from common.transforms.documents import find_transform
from common.transforms.pipeline import FixedView, Pipeline, check_same_scale, load_pipeline
from config import TrainConfig
from rsna.forms import check_submission, read_submission, write_submission
from rsna.kinds.kind import Probabilities, TrainedNetwork, dataset_folder_of, kind_of
from rsna.kinds.levels import LEVELS
from rsna.kinds.pictures import overfit_rows, picture_dataset, pipeline_windows, place_transform, seen_by, seen_pictures
from rsna.prediction.options import (
    TRAINING,
    ProbabilityOptions,
    SplitConfig,
    TrainedOptions,
    TTAOptions,
    WeightsOptions,
)
from rsna.training.outcome import HOLDOUT_FILE, studies_file
from rsna_dataset import (
    LABELS,
    SAMPLE_FILE,
    dataset_folder,
    read_fold,
    read_holdout,
    read_metadata,
    select_rows,
    study_targets,
)
from rsna_model import computed_by, quickest_way

logger = logging.getLogger(__name__)

UNSEEN_PREVALENCE = 1e-3
MONITORS = tuple(f"valid/{level.metric}" for level in LEVELS.values())
REPRODUCED = 1e-9
STORED_SIDE = 512  # of the competition's pictures
CALIBRATION_FILE = "calibration.json"  # beside the weights


def load_network(
    weight_file: Path,
    n_jobs: int | None = None,
    data_input_folder: Path | None = None,
    data_dataset: str | None = None,
    weights: str = BEST_WEIGHTS,
    *,
    any_kind: bool = False,
    seq_features: str | None = None,
    batch_size: int | None = None,
    compute: str = TRAINING,
) -> TrainedNetwork:
    """Rebuild network, transforms and settings from a checkpoint. A parameter that is None keeps the training's value.

    ``compute`` is the value of --net_compute. Raises the errors of :func:`common.checkpoint.load_checkpoint`, WorkError
    if the weights don't fit the model that the checkpoint names, and UsageError for a kind that sees no pictures, but
    not with ``any_kind``.
    """
    checkpoint = load_checkpoint(weight_file)
    check_task(checkpoint, weight_file)
    config = checkpoint_options(checkpoint, weight_file)
    kind = kind_of(config)
    given = {"n_jobs": n_jobs, "data_input_folder": data_input_folder, "data_dataset": data_dataset}
    given |= {"seq_features": seq_features, "tr_batch_size": batch_size}
    trained_batch = config.tr_batch_size
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    config = without_lacking_precision(config, weight_file)
    device = select_device(config.n_jobs, tf32=config.tr_tf32, deterministic=config.tr_deterministic)
    name, state = chosen_weights(checkpoint, weights)
    if not any_kind:
        check_sees_pictures(config, weight_file)
    pipeline = kind.load_pipeline(checkpoint, config, weight_file)
    build = partial(kind.build_architecture, config, kind.saved_channels(state, pipeline, weight_file))
    model = build_within(build, state, str(weight_file), config.net_model)
    if compute != TRAINING:
        config = computed_as_asked(config, compute, model, pipeline, device)
        keep_ends_exact(model)
    arrange_model(model, channels_last=config.tr_channels_last)
    amp_dtype = select_amp_dtype(config.tr_amp_dtype, device) if config.tr_use_amp else None
    return TrainedNetwork(
        kind.build_network(config, model, device, amp_dtype),
        config,
        pipeline,
        known_prevalences(checkpoint["prevalences"]),
        checkpoint["metrics"],
        checkpoint["iteration"],
        name,
        checkpoint.get("data_hash"),
        str(checkpoint["config"].get("data_dataset", TrainConfig.data_dataset)),
        checkpoint["transforms"].get("features", {}).get("sha256"),
        trained_batch,
    )


def checkpoint_options(checkpoint: Mapping[str, Any], weight_file: Path) -> TrainConfig:
    """Return the options of the training that wrote a checkpoint; UsageError, naming the file, if they are invalid."""
    return from_dict(TrainConfig, checkpoint["config"], f"{weight_file} (its configuration)")


def without_lacking_precision(config: TrainConfig, weight_file: Path) -> TrainConfig:
    """Return the options with float32 in place of number types that this machine lacks, and warn about them."""
    device, lacking = this_device(), []
    if config.tr_tf32 and not has_tf32(device):
        lacking.append("--tr_tf32=1")
        config = replace(config, tr_tf32=False)
    try:
        if config.tr_use_amp:
            select_amp_dtype(config.tr_amp_dtype, device)
    except UsageError:
        lacking.append(f"--tr_amp_dtype={config.tr_amp_dtype}")
        config = replace(config, tr_use_amp=False)
    if lacking:
        logger.warning(
            "%s: trained with %s, which this machine can't: computed in float32", weight_file, " and ".join(lacking)
        )
    return config


def computed_as_asked(
    config: TrainConfig, compute: str, model: nn.Module, pipeline: Pipeline | None, device: torch.device
) -> TrainConfig:
    """Return the options as --net_compute sets them, by a measurement for ``auto``; UsageError if it can't."""
    kind = kind_of(config)
    if not kind.has_ways:
        raise UsageError(f"--net_compute={compute}: is for slice networks, and this is {kind.noun}; leave it out")
    if device.type == "cuda":
        raise UsageError(f"--net_compute={compute}: is for a CPU, and there is a GPU here; leave it out")
    if compute == AUTO:
        compute = quickest_way(config, model, picture_shape(config, pipeline), training=False)
    return computed_by(config, compute)


def picture_shape(config: TrainConfig, pipeline: Pipeline) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of the network's input; a picture that is not resized counts as 512 x 512."""
    windows, windowed = pipeline_windows(dataset_folder(config.data_input_folder, config.data_dataset), config)
    side, slices = config.data_image_size or STORED_SIDE, 2 * config.data_context + 1
    if windowed:
        blank = np.zeros((side, side, slices * len(windows)), np.float32)
    else:
        blank = np.zeros((side, side, slices) if slices > 1 else (side, side), np.int16)
    height, width, channels = pipeline(image=blank)["image"].shape
    return channels, height, width


def check_sees_pictures(config: TrainConfig, weight_file: Path) -> None:
    """Raise UsageError if this network sees no pictures; the message says what to use instead."""
    kind = kind_of(config)
    if kind.sees_pictures:
        return
    instead = "; use the slice network's file (for --source its cross-validation's folder, and this file as --sequence)"
    raise UsageError(f"{weight_file}: {kind.noun}, which sees {kind.sees}{instead if kind.reads_features else ''}")


def load_asked(config: TrainedOptions, weight_file: Path, compute: str = TRAINING) -> TrainedNetwork:
    """Rebuild a network of any kind by a command's options; see :func:`load_network`."""
    return load_network(
        weight_file,
        weights=config.net_weights,
        any_kind=True,
        seq_features=config.seq_features,
        compute=compute,
        **place_of(config),
    )


def place_of(config: WeightsOptions) -> dict[str, Any]:
    """Return the arguments of :func:`load_network` that a command's options give: cores, dataset, batch size."""
    names = ("n_jobs", "data_input_folder", "data_dataset", "batch_size")
    return {name: getattr(config, name) for name in names if name in config.__dataclass_fields__}


def check_task(checkpoint: Mapping[str, Any], weight_file: Path) -> None:
    """Raise WorkError if a checkpoint has other classes than this task, or lacks the monitored metric."""
    if tuple(checkpoint["class_names"]) != LABELS:
        names = ", ".join(map(str, checkpoint["class_names"]))
        raise WorkError(f"{weight_file}: its classes are {names}; {', '.join(LABELS)} are expected, in this order")
    if not any(monitor in checkpoint["metrics"] for monitor in MONITORS):
        raise WorkError(f"{weight_file}: the checkpoint lacks the metric {MONITORS[0]}; use another one of the run")


def known_prevalences(written: Sequence[float]) -> np.ndarray:
    """Return a checkpoint's prevalences; 0 and 1, which earlier versions wrote, become 0.001 and 0.999."""
    values = np.asarray(written, dtype=np.float64)
    certain = (values <= 0) | (values >= 1)
    return np.where(certain, np.clip(values, UNSEEN_PREVALENCE, 1 - UNSEEN_PREVALENCE), values)


def split_rows(trained: TrainedNetwork, split: str) -> pd.DataFrame:
    """Return the images (index ``id``) of ``split``: train or valid of the training's fold, test, or holdout."""
    config = trained.config
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    if split == "test":
        metadata = read_metadata(folder)
        rows = metadata[metadata["split"] == "test"]
        if rows.empty:
            raise WorkError(f"{folder}: the dataset has no test images")
        return rows
    if split == "holdout":
        return read_holdout(folder, config.data_dataset)
    fold = read_fold(folder, config.data_dataset, config.data_fold)
    if config.tr_overfit:  # --tr_overfit validates on the images that it trains on
        return overfit_rows(select_rows(fold, "train", config.dev_enabled), config.tr_overfit, trained.trained_batch)
    return select_rows(fold, split, config.dev_enabled)


@dataclass(frozen=True)
class Views:
    """Test-time augmentation: the views of each image, and how to average their predictions (mean or logit)."""

    pipelines: Sequence[FixedView]
    method: str


def load_views(trained: TrainedNetwork, config: TTAOptions) -> Views | None:
    """Build the views of --tta, or None without it; UsageError if they don't fit the trained network."""
    if config.tta is None:
        return None
    if trained.pipeline is None:
        kind = kind_of(trained.config)
        raise UsageError(f"--tta: {kind.noun} sees {kind.sees}, so that there are no other views")
    windows, windowed = pipeline_windows(dataset_folder_of(trained), trained.config)
    pipeline = load_pipeline(find_transform(config.tta), windows, **seen_by(trained.config, windowed))
    check_same_scale(trained.pipeline, pipeline)
    placed = place_transform(pipeline, trained.config, trained.network.device)
    return Views([FixedView(placed, view) for view in range(config.tta_views)], config.tta_mean)


@dataclass(frozen=True)
class Calibration:
    """Temperature of each label: for slices, and for studies if the network judges studies."""

    slices: dict[str, float]
    studies: dict[str, float] | None


def write_calibration(
    trained: TrainedNetwork, frame: pd.DataFrame, judged: pd.DataFrame | None, rows: pd.DataFrame, path: Path
) -> None:
    """Fit a temperature for each label to the validation images' predictions, and write them with the weights' name.

    ``judged`` are the network's probabilities of studies (index ``study_id``), None if it doesn't judge studies.
    """
    document = {
        "weights": trained.weights,
        "iteration": trained.iteration,
        "temperatures": fit_temperatures(frame[list(LABELS)], rows[list(LABELS)]),
    }
    if judged is not None:
        truth = study_targets(rows, rows["study_id"].to_numpy(dtype=str)).loc[judged.index]
        document["study_temperatures"] = fit_temperatures(judged[list(LABELS)], truth)
    write_json(path, document)


def load_calibration(weight_file: Path, weights: str, iteration: int, *, studies: bool) -> Calibration:
    """Return the temperatures in ``calibration.json`` beside ``weight_file``; with ``studies`` also theirs.

    Raises UsageError if there is no such file or it belongs to other ``weights``, WorkError if it is damaged.
    """
    path = weight_file.parent / CALIBRATION_FILE
    try:
        document = read_json(path)
        found = Calibration(
            _temperatures(document["temperatures"]), _temperatures(document["study_temperatures"]) if studies else None
        )
        made_for = (document["weights"], document["iteration"])
    except OSError:
        raise UsageError(f"--calibrate=1: there is no {path}; python evaluate.py --experiment_id=… makes it") from None
    except (ValueError, TypeError, KeyError):
        raise WorkError(
            f"{path}: damaged, or written by an earlier version that fitted less; evaluate the experiment again"
        ) from None
    if made_for != (weights, iteration):
        raise UsageError(
            f"--calibrate=1: {path} belongs to the weights {made_for[0]} of iteration {made_for[1]}, not to "
            f"{weights} of iteration {iteration}; evaluate these"
        )
    return found


def _temperatures(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the temperature of each label; ValueError for one that is not positive, KeyError where one is missing."""
    found = {name: float(values[name]) for name in LABELS}
    if not all(0 < value < float("inf") for value in found.values()):
        raise ValueError("a temperature is not positive")
    return found


def asked_calibration(config: ProbabilityOptions, weight_file: Path, trained: TrainedNetwork) -> Calibration | None:
    """Return the network's calibration with --calibrate=1, otherwise None; errors as :func:`load_calibration`."""
    if not config.calibrate:
        return None
    judges = kind_of(trained.config).judges_studies
    return load_calibration(weight_file, trained.weights, trained.iteration, studies=judges)


def predict_rows(
    trained: TrainedNetwork, rows: pd.DataFrame, views: Views | None = None, workers: int | None = None
) -> pd.DataFrame:
    """Return the probabilities (index ``id``) of ``rows``; with ``views`` the average over the views.

    ``workers`` processes load the images. 0: this process; None: as many as the cores allow. Raises UsageError if a
    view gives pictures of another size than the network was validated on.
    """
    return predict_with_studies(trained, rows, views, workers)[0]


def predict_with_studies(
    trained: TrainedNetwork, rows: pd.DataFrame, views: Views | None = None, workers: int | None = None
) -> Probabilities:
    """Return the probabilities of :func:`predict_rows`, and from the same pass those of studies (index ``study_id``).

    The latter are None if the network doesn't judge studies.
    """
    config, device, predict = trained.config, trained.network.device, kind_of(trained.config).predict
    if workers is None:
        workers = loader_workers(config.n_jobs, device)
    if views is None:
        pipeline = None if trained.pipeline is None else place_transform(trained.pipeline, config, device)
        return predict(trained, rows, pipeline, workers, "predict")
    check_view_size(trained, rows, views.pipelines[0])
    count = len(views.pipelines)
    seen = {
        f"view {number}": predict(trained, rows, pipeline, workers, f"view {number}/{count}")
        for number, pipeline in enumerate(views.pipelines, start=1)
    }
    return mean_of(seen, views.method)


def mean_of(predicted: Mapping[str, Probabilities], method: str = "mean") -> Probabilities:
    """Average the predictions of several models or views: their probabilities, or with ``method`` logit their logits.

    The studies' part is None unless all of them judge studies.
    """
    equal = [1.0] * len(predicted)
    frame = combine({name: slices for name, (slices, _) in predicted.items()}, equal, method)
    judged = {name: studies for name, (_, studies) in predicted.items() if studies is not None}
    return frame, combine(judged, equal, method) if len(judged) == len(predicted) else None


def check_view_size(trained: TrainedNetwork, rows: pd.DataFrame, view: FixedView) -> None:
    """Raise UsageError if a view gives pictures of another size than the validation's."""
    viewed = picture_dataset(trained.config, dataset_folder_of(trained), rows, view)
    view.trial(viewed.stored(0))
    sizes = [dataset[0].size for dataset in (seen_pictures(trained, rows), viewed)]
    if sizes[0] != sizes[1]:
        expected, given = (f"{height} x {width}" for height, width in sizes)
        raise UsageError(
            f"--tta: {view.name} gives pictures of {given} pixels, the network was validated on {expected}; use a file "
            "that gives these"
        )


def sample_submission(trained: TrainedNetwork, split: str) -> Path | None:
    """Return the competition's sample submission for the test set; None for other splits and other data."""
    path = dataset_folder(trained.config.data_input_folder, trained.config.data_dataset) / SAMPLE_FILE
    return path if split == "test" and path.is_file() else None


def output_path(config: SplitConfig, trained: TrainedNetwork, folder: Path) -> Path:
    """Return the file to write: --output_file, or submission.csv or ``predictions_<split>.csv`` in ``folder``.

    Other commands read submission.csv and predictions_valid.csv as the experiment's own results. So predictions of
    another dataset get another name, and so do those of validation images with --tta or --calibrate=1.
    """
    name = "submission" if sample_submission(trained, config.split) else f"predictions_{config.split}"
    if trained.config.data_dataset != trained.trained_on:
        name += f"_{trained.config.data_dataset}"
    if config.split == "valid":
        name += "_tta" if config.tta is not None else "_calibrated" if config.calibrate else ""
    path = config.output_file or folder / f"{name}.csv"
    check_output("output_file", path)
    return path


def write_predictions(trained: TrainedNetwork, frame: pd.DataFrame, split: str, path: Path) -> None:
    """Write probabilities: as a submission if there is a sample submission, otherwise with one row for each image.

    A submission has exactly the sample's images. Images without a prediction get the training prevalences, and a
    warning counts them. Predictions of other images are left out.
    """
    sample_path = sample_submission(trained, split)
    if sample_path is None:
        write_csv(path, frame, index=True)
        return
    asked = read_submission(sample_path).index
    missing = asked.difference(frame.index)
    if len(missing):
        logger.warning(
            "%d of %d test images have no picture and get the training prevalences: %s",
            len(missing),
            len(asked),
            ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else ""),
        )
    fill = pd.DataFrame(np.tile(trained.prevalences, (len(missing), 1)), index=missing, columns=list(LABELS))
    write_submission(pd.concat([frame, fill]).loc[asked], sample_path, path)
    check_submission(path, sample_path)


def write_studies(studies: pd.DataFrame, path: Path) -> Path:
    """Write the probabilities of studies beside ``path``, the file of their slices; return the new file."""
    write_csv(studies_file(path), studies, index=True)
    return studies_file(path)


def monitor_of(trained: TrainedNetwork) -> str:
    """Return the key of the metric that chose the weights: that of slices, or of studies where only they had labels."""
    return next(monitor for monitor in MONITORS if monitor in trained.metrics)


def logged_value(trained: TrainedNetwork) -> float:
    """Return the metric that the training logged for these weights."""
    return trained.metrics[metric_key(monitor_of(trained), trained.weights)]


def says_how_it_flatters(config: SplitConfig, trained: TrainedNetwork, path: Path) -> bool:
    """Whether ``path`` gets plain predictions of the hold-out, which show how far the validation flatters."""
    as_validated = config.tta is None and not config.calibrate and trained.config.data_fold != HOLDOUT
    return as_validated and config.split == HOLDOUT and path == config.net_weight_file.parent / HOLDOUT_FILE


def compare_with_log(trained: TrainedNetwork, table: pd.DataFrame) -> str:
    """Return a line that says whether the evaluation reproduces the value that the training logged."""
    logged, monitor = logged_value(trained), monitor_of(trained)
    difference = abs(float(table.loc[WEIGHTED, "log_loss"]) - logged)
    if difference <= REPRODUCED:
        return f"reproduces the logged {monitor} {logged:.6f} of iteration {trained.iteration}"
    return (
        f"differs by {difference:.2g} from the logged {monitor} {logged:.6f} of iteration {trained.iteration}: "
        "another machine, library version, number of threads, or dataset"
    )
