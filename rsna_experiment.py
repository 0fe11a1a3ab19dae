"""Builders from a configuration or a checkpoint: data, model, network. The one module that joins the rest."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import distributed
from common.arguments import from_dict, to_dict
from common.callbacks.callback import Callback
from common.callbacks.early_stopping import EarlyStopping
from common.callbacks.metric_logger import MetricLogger
from common.callbacks.model_checkpoint import ModelCheckpoint
from common.callbacks.profiler import Profiler
from common.callbacks.progress_bar import ProgressBar
from common.callbacks.sample_losses import SampleLosses
from common.callbacks.telemetry import Telemetry
from common.checkpoint import BEST_WEIGHTS, LAST, chosen_weights, load_checkpoint, metric_key
from common.datasets.batch import finished_picture
from common.datasets.loaders import make_loader
from common.datasets.samplers import SequentialSampler, TrainingImages, build_sampler
from common.ensembling import combine
from common.errors import Interrupted, UsageError, WorkError
from common.experiment import (
    FILE_ONLY,
    Experiment,
    add_to_history,
    create_experiment,
    launched_experiment,
    lock_experiment,
)
from common.files import write_csv, write_text
from common.hardware import arrange_model, set_computation
from common.losses import build_loss
from common.metrics import constant_predictor
from common.models.backbone import create_model
from common.models.facts import measure_model
from common.models.freezing import freeze
from common.models.weights import load_weights
from common.networks.averages import build_averages, check_averages
from common.networks.finders import find_batch_size, find_learning_rate, rate_picture
from common.networks.network import AbstractNetwork, Average, Predictions, Training
from common.optimizers import build_optimizer
from common.resume import Run, resume_run
from common.schedulers import Schedule, build_schedule
from common.statistics import WEIGHTED_ROW
from common.trackers.jsonl import JsonlTracker
from common.trackers.neptune import NeptuneTracker
from common.trackers.tracker import Tracker, TrackerGroup
from common.transforms import FixedView, Pipeline, check_same_scale, find_transform, load_pipeline, pipeline_from_dict
from common.transforms.device import DevicePart, device_refusal
from config import EvaluateConfig, PredictConfig, TrainConfig, Windows, parse_windows
from rsna_dataset import (
    DATASET_INFO,
    LABEL_WEIGHTS,
    LABELS,
    SAMPLE_FILE,
    RSNADataset,
    check_submission,
    dataset_folder,
    read_dataset_info,
    read_fold,
    read_holdout,
    read_metadata,
    read_submission,
    write_submission,
)
from rsna_network import RSNANetwork, prediction_frame

logger = logging.getLogger(__name__)

MONITOR = "valid/weighted_log_loss"
DEV_IMAGES = 256
TRIAL_IMAGES = 8
REPRODUCED = 1e-9


@dataclass(frozen=True)
class TrainingData:
    """Everything about the data that a run needs.

    ``hash``: of the fold's images and labels; ``prevalences`` (6,): share of positives among the training images;
    ``constant_log_loss``: what predicting them for every validation image scores; ``transforms``: the JSON documents of
    the pipelines by split.
    """

    train_loader: DataLoader
    valid_loader: DataLoader
    prevalences: np.ndarray
    constant_log_loss: float
    transforms: dict[str, dict[str, Any]]
    channels: int
    hash: str


def cpu_cores(n_jobs: int) -> int:
    """Return how many CPU cores to use: ``n_jobs``, or for 0 this process's share of all that it may use."""
    return n_jobs or max(1, len(os.sched_getaffinity(0)) // distributed.local_processes())


def select_device(config: TrainConfig) -> torch.device:
    """Return the GPU where there is one, else the CPU, set to compute as the options say; UsageError where it can't."""
    torch.set_num_threads(cpu_cores(config.n_jobs))
    device = torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    set_computation(device, tf32=config.tr_tf32, deterministic=config.tr_deterministic)
    return device


def loader_workers(n_jobs: int, device: torch.device) -> int:
    """Return the number of loading processes: a core each beside a GPU, one where the CPU computes, none on one core.

    Results don't depend on it.
    """
    cores = cpu_cores(n_jobs)
    return 0 if cores == 1 else 1 if device.type == "cpu" else cores


def given_options(config: TrainConfig, prefix: str, *without: str) -> dict[str, Any]:
    """Return the options whose names start with ``prefix``, but ``without``; what the user didn't give is None."""
    names = [field.name for field in fields(config) if field.name.startswith(prefix) and field.name not in without]
    return {name: getattr(config, name) for name in names}


def select_amp_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision, None for float32; UsageError where the device can't compute in it."""
    if not config.tr_use_amp:
        return None
    if config.tr_amp_dtype == "float16" and device.type == "cpu":
        raise UsageError("--tr_amp_dtype=float16 needs a GPU and there is none here; use bfloat16, or --tr_use_amp=0")
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if config.tr_amp_dtype == "bfloat16" and not has_bfloat16:
        raise UsageError("--tr_amp_dtype=bfloat16: this GPU has no bfloat16; use float16, or --tr_use_amp=0")
    if config.tr_amp_dtype == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return getattr(torch, config.tr_amp_dtype)


def build_data(config: TrainConfig, device: torch.device) -> TrainingData:
    """Read fold and transforms and build the loaders; UsageError where they don't fit each other."""
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    rows = read_fold(folder, config.data_dataset, config.data_fold)
    train_rows, valid_rows = (select_rows(rows, split, config.dev_enabled) for split in ("train", "valid"))
    if config.tr_overfit:
        train_rows = valid_rows = overfit_rows(train_rows, config.tr_overfit, config.tr_batch_size)
    if len(train_rows) < config.tr_batch_size:
        raise UsageError(
            f"--tr_batch_size={config.tr_batch_size} is larger than the {len(train_rows)} training images of fold "
            f"{config.data_fold}{' with --dev_enabled=1' if config.dev_enabled else ''}"
        )
    if valid_rows.empty:
        raise WorkError(
            f"{folder}: fold {config.data_fold} has no validation images; run python preprocessing.py again"
        )
    if config.data_transform_device == "cuda" and device.type != "cuda":
        raise UsageError("--data_transform_device=cuda needs a GPU and there is none here; use auto or cpu")
    windows, windowed = pipeline_windows(folder, config)
    options = {"windowed": windowed, "fuse": config.data_transform_fuse}
    train_pipeline = load_pipeline(find_transform(config.data_train_transform), windows, **options)
    valid_pipeline = load_pipeline(find_transform(config.data_valid_transform), windows, **options)
    check_same_scale(train_pipeline, valid_pipeline)
    if config.tr_overfit:
        train_pipeline = valid_pipeline  # no augmentation: the images are to be learnt by heart
    train_pipeline, valid_pipeline = (
        place_transform(pipeline, config, device) for pipeline in (train_pipeline, valid_pipeline)
    )
    train_set = RSNADataset(folder, train_rows, train_pipeline, config.data_image_size, config.seed)
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
    workers = loader_workers(config.n_jobs, device)
    train_loader = make_loader(train_set, sampler, config.tr_batch_size, workers, drop_last=True, seed=config.seed)
    valid_loader = build_loader(folder, valid_rows, valid_pipeline, config, workers)
    check_trial_images("--data_train_transform", train_set, trial_indices(folder, train_rows, config))
    check_trial_images("--data_valid_transform", valid_loader.dataset, trial_indices(folder, valid_rows, config))
    warn_of_other_size(train_set, valid_loader.dataset)
    prevalences = train_rows[list(LABELS)].to_numpy(dtype=np.float64).mean(axis=0)
    constant = constant_predictor(prevalences, valid_rows[list(LABELS)].to_numpy(), LABEL_WEIGHTS)
    documents = {"train": train_pipeline.document, "valid": valid_pipeline.document}
    fold_hash = rows_hash(train_rows, valid_rows)
    return TrainingData(
        train_loader, valid_loader, prevalences, constant, documents, train_pipeline.channels, fold_hash
    )


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


def transforms_on_device(config: TrainConfig, device: torch.device) -> bool:
    """Say whether transforms are computed in whole batches where the model computes."""
    return device.type == "cuda" and config.data_transform_device != "cpu"


def rows_hash(*parts: pd.DataFrame) -> str:
    """Return a hash of the images (index) and labels of several tables, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for rows in parts:
        digest.update("\n".join(rows.index).encode() + b"\0")
        digest.update(np.ascontiguousarray(rows[list(LABELS)].to_numpy(dtype=np.float32)).tobytes())
    return digest.hexdigest()


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
        dataset.pipeline.trial(dataset.read(image_id))
        picture = finished_picture(dataset, index)
        if not picture.isfinite().all():
            raise UsageError(f"{flag}: {dataset.pipeline.name} gives values that are not finite")
        found.setdefault(tuple(picture.shape[1:]), image_id)
    if len(found) > 1:
        listing = ", ".join(f"{rows}x{columns} ({image_id})" for (rows, columns), image_id in found.items())
        raise UsageError(
            f"--data_image_size=0: the pictures have different sizes, which can't stand in one batch: {listing}; give "
            "a size, or a transform file that makes them equal"
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


def select_rows(rows: pd.DataFrame, split: str, dev_enabled: bool) -> pd.DataFrame:
    """Return the fold's rows of ``split``; a rehearsal takes at most 256 of them, evenly spread."""
    selected = rows[rows["sample_type"] == split]
    if dev_enabled and len(selected) > DEV_IMAGES:
        selected = selected.iloc[np.linspace(0, len(selected) - 1, DEV_IMAGES).round().astype(int)]
    return selected


def overfit_rows(rows: pd.DataFrame, batches: int, batch_size: int) -> pd.DataFrame:
    """Return the images of ``batches`` batches, evenly spread over ``rows``; UsageError where there are too few."""
    count = batches * batch_size
    if count > len(rows):
        raise UsageError(f"--tr_overfit={batches}: {count} images are more than the {len(rows)} of the training set")
    return rows.iloc[np.linspace(0, len(rows) - 1, count).round().astype(int)]


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
    folder: Path, rows: pd.DataFrame, pipeline: Pipeline | DevicePart | FixedView, config: TrainConfig, workers: int
) -> DataLoader:
    """Build a loader that gives every row once, in order."""
    dataset = RSNADataset(folder, rows, pipeline, config.data_image_size, config.seed)
    dataset.check_files()
    sampler = SequentialSampler(len(dataset), config.seed)
    return make_loader(dataset, sampler, config.tr_batch_size, workers, drop_last=False, seed=config.seed)


def build_model(config: TrainConfig, channels: int, *, starting_weights: bool = True) -> nn.Module:
    """Build the timm model with six logits and, unless a checkpoint will bring them, its starting weights.

    What is not trained is frozen.
    """
    if config.net_in_chans not in (None, channels):
        raise UsageError(
            f"--net_in_chans={config.net_in_chans}: the pictures have {channels} channels; change the windows "
            "(--data_windows or the transform files), or leave --net_in_chans out"
        )
    if config.net_weight_adapt and config.net_weight_file is None:
        raise UsageError("--net_weight_adapt=1 needs --net_weight_file")
    model = build_architecture(
        config, channels, config.net_pretrained and config.net_weight_file is None and starting_weights
    )
    if config.net_weight_file is not None and starting_weights:
        notes = load_weights(model, config.net_weight_file, model_name=config.net_model, adapt=config.net_weight_adapt)
        tell(f"{config.net_weight_file}: {line}" for line in notes)
    freeze(model, config.net_freeze)
    return arrange_model(
        model,
        channels_last=config.tr_channels_last,
        grad_checkpoint=config.tr_grad_checkpoint,
        compile_mode=config.tr_compile,
    )


def build_architecture(config: TrainConfig, channels: int, pretrained: bool = False) -> nn.Module:
    """Build the timm model of a configuration."""
    return create_model(
        config.net_model,
        len(LABELS),
        channels,
        pretrained,
        config.data_image_size,
        drop=config.net_drop,
        drop_path=config.net_drop_path,
        pool=config.net_pool,
    )


def build_optimization(config: TrainConfig, model: nn.Module) -> tuple[torch.optim.Optimizer, Schedule]:
    """Build optimizer and schedule; UsageError where an option is given that they or the model don't know."""
    given = given_options(config, "optim_", "optim_lr", "optim_weight_decay")
    optimizer = build_optimizer(config.optim, model, config.optim_lr, config.optim_weight_decay, given)
    steps = -(-config.tr_iteration_num // config.tr_accumulation_step)
    return optimizer, build_schedule(config.sched, optimizer, steps, given_options(config, "sched_"))


def check_choices(config: TrainConfig, model: nn.Module) -> None:
    """Build what the options choose once, before there is a folder, so that what can't work leaves none behind."""
    if config.tr_batch_find and not torch.cuda.is_available():
        raise UsageError("--tr_batch_find=1 needs a GPU: without one the system ends a run that takes too much")
    if config.tr_batch_find and distributed.world_size() > 1:
        raise UsageError("--tr_batch_find=1: look for the size with one process, without torchrun")
    if config.tr_sync_bn:
        distributed.check_synchronized_norms(model)
    build_optimization(config, model)
    build_training_loss(config)
    check_averages(
        {"ema": config.tr_ema, "swa": config.tr_swa},
        given_options(config, "tr_ema_") | given_options(config, "tr_swa_"),
    )


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the disk space that a run needs: best.pt, three copies of last.pt with two moments, and its logs."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return 11 * weights + 50_000_000


@contextmanager
def find_run(config: TrainConfig, arguments: Sequence[str]) -> Iterator[Run[TrainConfig]]:
    """Yield the run that ``--tr_resume`` names, or that torchrun starts again, under its lock; or a new one."""
    resume = config.tr_resume
    if resume is None and distributed.any_process(distributed.restarts() > 0):
        resume = distributed.main_first(lambda: launched_experiment(config.output_dir, distributed.launch_id()))
    if resume is None:
        yield Run(config)
        return
    with resume_run(TrainConfig, arguments, resume, config.tr_resume_change, config.output_dir) as run:
        place = {"output_dir": run.folder.parent, "experiment_id": run.folder.name}
        yield replace(run, config=replace(run.config, tr_resume=None, tr_resume_change=(), **place))


@contextmanager
def claim_experiment(
    run: Run[TrainConfig], config: TrainConfig, data: TrainingData, model: nn.Module, arguments: Sequence[str]
) -> Iterator[Experiment]:
    """Yield the experiment: a new one under its lock, or the resumed run's, cut back to its checkpoint."""
    typed = ["python", "train.py", *arguments]
    if run.folder is not None:
        run.check_data(data.hash, data.transforms)
        if distributed.is_main():
            run.cut_back()
            add_to_history(run.folder, typed, run.iteration)
        yield Experiment(run.folder.name, run.folder)
        return
    experiment = distributed.main_first(
        lambda: create_experiment(
            config.output_dir,
            config.experiment_id,
            to_dict(config),
            typed,
            free_bytes=checkpoint_bytes(model),
            launch=distributed.launch_id(),
        )
    )
    with lock_experiment(experiment.folder) if distributed.is_main() else nullcontext():
        yield experiment


def check_interrupted(network: AbstractNetwork, experiment: Experiment, config: TrainConfig) -> None:
    """Raise :class:`Interrupted`, with the command that goes on, where a signal ended the run before its time."""
    if network.interrupted:
        default = config.output_dir == TrainConfig.output_dir
        where = experiment.id if default else experiment.folder / LAST
        raise Interrupted(
            f"interrupted after iteration {network.iteration} of {config.tr_iteration_num}, state saved; go on with: "
            f"python train.py --tr_resume={where}"
        )


def build_network(
    config: TrainConfig,
    experiment: Experiment,
    data: TrainingData,
    model: nn.Module,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    tracker: Tracker,
) -> RSNANetwork:
    """Join data, model, optimizer, schedule and callbacks to a network that is ready to fit."""
    if config.tr_sync_bn:
        model = distributed.synchronized_norms(model)
    optimizer, schedule = build_optimization(config, model.to(device))
    training = Training(
        train_loader=data.train_loader,
        valid_loader=data.valid_loader,
        optimizer=optimizer,
        schedule=schedule,
        iteration_num=config.tr_iteration_num,
        iteration_valid=config.tr_iteration_valid,
        accumulation_step=config.tr_accumulation_step,
        callbacks=build_callbacks(config, experiment, data, tracker),
        monitor=MONITOR,
        clip_norm=config.tr_clip_norm,
        nonfinite=config.tr_nonfinite,
        nonfinite_limit=config.tr_nonfinite_limit,
        averages=build_weight_averages(config, model),
    )
    return RSNANetwork(model, device, amp_dtype, training, build_training_loss(config))


def build_training_loss(config: TrainConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the training loss; UsageError where an option is given that it doesn't know."""
    return build_loss(config.loss, given_options(config, "loss_"), LABEL_WEIGHTS)


def build_weight_averages(config: TrainConfig, model: nn.Module) -> dict[str, Average]:
    """Build the averages that are asked for; UsageError where an option of one is given that isn't."""
    steps = -(-config.tr_iteration_num // config.tr_accumulation_step)
    given = given_options(config, "tr_ema_") | given_options(config, "tr_swa_")
    return build_averages(model, steps, {"ema": config.tr_ema, "swa": config.tr_swa}, given)


def build_callbacks(
    config: TrainConfig, experiment: Experiment, data: TrainingData, tracker: Tracker
) -> Sequence[Callback]:
    """Return the callbacks of a run, in the order of their calls."""

    def write_valid_predictions(predictions: Predictions) -> None:
        write_csv(experiment.folder / "predictions_valid.csv", prediction_frame(predictions), index=True)

    description = {
        "config": to_dict(config),
        "transforms": data.transforms,
        "class_names": list(LABELS),
        "prevalences": data.prevalences.tolist(),
        "data_hash": data.hash,
    }
    telemetry = Telemetry()
    metric_logger = MetricLogger(tracker, config.tr_iteration_log, telemetry)
    listeners: list[Callback] = []
    if config.data_sampler == "hard":
        listeners.append(SampleLosses(torch.tensor(LABEL_WEIGHTS) / sum(LABEL_WEIGHTS)))
    if config.tr_early_stop:
        listeners.append(EarlyStopping(MONITOR, config.tr_early_stop, config.tr_early_stop_delta or 0.0))
    shown: list[Callback] = []
    if distributed.is_main():
        shown.append(ProgressBar(metric_logger, MONITOR, data.constant_log_loss))
        if config.tr_profile:
            shown.append(Profiler(experiment.folder, config.tr_profile))
    return (
        telemetry,
        *listeners,
        metric_logger,
        *shown,
        ModelCheckpoint(experiment.folder, MONITOR, description, write_valid_predictions, config.tr_checkpoint_minutes),
    )


def report_start(config: TrainConfig, data: TrainingData, network: RSNANetwork) -> None:
    """Print and log what is about to run: model, data, steps, a memory estimate, seed, versions."""
    batch = data.train_loader.collate_fn([data.train_loader.dataset[0]])
    image = network.prepare_batch(batch).inputs["image"]
    facts = measure_model(network.model, image)
    training = network.training
    averages = config.tr_ema + config.tr_swa
    images = (len(data.train_loader.dataset), len(data.valid_loader.dataset))
    processes = distributed.world_size()
    effective = config.tr_batch_size * config.tr_accumulation_step * processes
    shared = f" in each of {processes} processes" if processes > 1 else ""
    info = read_dataset_info(dataset_folder(config.data_input_folder, config.data_dataset))
    needed = facts.training_bytes(config.tr_batch_size, moments=2, copies=averages)
    lines = (
        f"model {config.net_model}: {facts.parameters / 1e6:.2f} M parameters, {facts.trainable / 1e6:.2f} M trained, "
        f"{facts.flops / 1e9:.2f} GFLOPs for an image {'x'.join(map(str, image.shape[1:]))}",
        f"data {config.data_dataset} fold {config.data_fold}: {images[0]} training and {images[1]} validation images, "
        f"dataset {info.get('hash', 'without a hash')}",
        f"{training.iteration_num} iterations of {config.tr_batch_size} images{shared} = {training.step_num} steps of "
        f"{effective} = {training.iteration_num / training.iterations_per_epoch:.2f} epochs, {config.optim}, "
        f"{config.sched}, seed {config.seed}",
        f"memory about {needed / 1e9:.2f} GB in float32 on {network.device.type}{shared} (weights, gradients, two "
        f"moments, activations), torch {torch.__version__}, timm {timm.__version__}",
    )
    tell(lines)


def tell(lines: Iterable[str]) -> None:
    """Print lines, by the main process alone, and log them."""
    for line in lines if distributed.is_main() else ():
        print(line, file=sys.stderr)
        logger.info("%s", line, extra={FILE_ONLY: True})


def run_finders(config: TrainConfig, experiment: Experiment, network: RSNANetwork) -> None:
    """Do what --tr_batch_find and --tr_lr_find ask for; the network is as before afterwards."""
    lines = []
    if config.tr_batch_find:
        found = find_batch_size(network, len(network.training.train_loader.dataset))
        lines.append(f"the largest power of two that fits: --tr_batch_size={found}")
    if config.tr_lr_find:
        curve = find_learning_rate(network)
        if distributed.is_main():
            write_text(experiment.folder / "lr_find.svg", rate_picture(curve))
            write_csv(experiment.folder / "lr_find.csv", pd.DataFrame({"rate": curve.rates, "loss": curve.losses}))
        lines.append(
            f"the loss falls fastest at --optim_lr={curve.suggestion:.2g} ({experiment.folder / 'lr_find.svg'}); this "
            f"run trains with {config.optim_lr:g}"
        )
    tell(lines)


@contextmanager
def open_tracker(config: TrainConfig, experiment: Experiment) -> Iterator[Tracker]:
    """Start the trackers: metrics.jsonl always, Neptune where asked for; end them with how the run ended."""
    trackers: list[Tracker] = [JsonlTracker()] if distributed.is_main() else []
    if config.nml_enabled and not config.dev_enabled and distributed.is_main():
        trackers.append(NeptuneTracker())
    group = TrackerGroup(trackers)
    status = "failed"
    try:
        group.start(experiment.id, experiment.folder, to_dict(config))
        for name in ("config.yaml", "environment.json"):
            group.log_file(experiment.folder / name)
        yield group
        status = "finished"
    except (KeyboardInterrupt, Interrupted):
        status = "interrupted"
        raise
    finally:
        group.finish(status)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network rebuilt from a checkpoint, with the settings that its images need; ``weights``: raw or an average."""

    network: RSNANetwork
    config: TrainConfig
    pipeline: Pipeline
    prevalences: np.ndarray
    metrics: dict[str, float]
    iteration: int
    weights: str


def load_network(
    weight_file: Path,
    n_jobs: int | None = None,
    data_input_folder: Path | None = None,
    data_dataset: str | None = None,
    weights: str = BEST_WEIGHTS,
) -> TrainedNetwork:
    """Rebuild network, transforms and settings from a checkpoint alone; None keeps what the training had.

    Raises the errors of :func:`common.checkpoint.load_checkpoint`, and WorkError for weights that don't fit the model
    named in the checkpoint.
    """
    checkpoint = load_checkpoint(weight_file)
    check_task(checkpoint, weight_file)
    config = from_dict(TrainConfig, checkpoint["config"], f"{weight_file} (its configuration)")
    given = {"n_jobs": n_jobs, "data_input_folder": data_input_folder, "data_dataset": data_dataset}
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    folder = dataset_folder(config.data_input_folder, config.data_dataset)
    windows, windowed = pipeline_windows(folder, config)
    source = f"{weight_file} (valid transform)"
    options = {"windowed": windowed, "fuse": config.data_transform_fuse}
    pipeline = pipeline_from_dict(checkpoint["transforms"]["valid"], source, windows, **options)
    device = select_device(config)
    model = build_architecture(config, pipeline.channels)
    name, state = chosen_weights(checkpoint, weights)
    load_weights(model, state, str(weight_file), config.net_model)
    network = RSNANetwork(model, device, select_amp_dtype(config, device))
    return TrainedNetwork(
        network,
        config,
        pipeline,
        np.array(checkpoint["prevalences"]),
        checkpoint["metrics"],
        checkpoint["iteration"],
        name,
    )


def check_task(checkpoint: Mapping[str, Any], weight_file: Path) -> None:
    """Raise WorkError where a checkpoint is of another task, or lacks what predicting and evaluating need."""
    if tuple(checkpoint["class_names"]) != LABELS:
        names = ", ".join(map(str, checkpoint["class_names"]))
        raise WorkError(f"{weight_file}: its classes are {names}; {', '.join(LABELS)} are expected, in this order")
    missing = [
        what
        for what, known in (
            ("the validation transform", "valid" in checkpoint["transforms"]),
            ("a prevalence for each label", len(checkpoint["prevalences"]) == len(LABELS)),
            (f"the metric {MONITOR}", MONITOR in checkpoint["metrics"]),
        )
        if not known
    ]
    if missing:
        raise WorkError(f"{weight_file}: the checkpoint lacks {', '.join(missing)}; use another one of the run")


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
    if config.tr_overfit:  # such a run validates on what it trains on
        return overfit_rows(select_rows(fold, "train", config.dev_enabled), config.tr_overfit, config.tr_batch_size)
    return select_rows(fold, split, config.dev_enabled)


@dataclass(frozen=True)
class Views:
    """Test-time augmentation: the views of each image, and how their predictions are put together (mean or logit)."""

    pipelines: Sequence[FixedView]
    method: str


def load_views(trained: TrainedNetwork, config: PredictConfig | EvaluateConfig) -> Views | None:
    """Build the views of --tta, None without it; UsageError where they don't fit the trained network."""
    if config.tta is None:
        return None
    windows, windowed = pipeline_windows(dataset_folder_of(trained), trained.config)
    options = {"windowed": windowed, "fuse": trained.config.data_transform_fuse}
    pipeline = load_pipeline(find_transform(config.tta), windows, **options)
    check_same_scale(trained.pipeline, pipeline)
    placed = place_transform(pipeline, trained.config, trained.network.device)
    return Views([FixedView(placed, view) for view in range(config.tta_views)], config.tta_mean)


def dataset_folder_of(trained: TrainedNetwork) -> Path:
    """Return the folder of the dataset that a trained network predicts."""
    return dataset_folder(trained.config.data_input_folder, trained.config.data_dataset)


def predict_rows(trained: TrainedNetwork, rows: pd.DataFrame, views: Views | None = None) -> pd.DataFrame:
    """Return probabilities (index ``id``) of ``rows``; with ``views`` put together from those of each view.

    Raises UsageError where a view gives pictures of another size than the network was validated on.
    """
    config = trained.config
    workers = loader_workers(config.n_jobs, trained.network.device)

    def predict(pipeline: Pipeline | DevicePart | FixedView, label: str) -> pd.DataFrame:
        loader = build_loader(dataset_folder_of(trained), rows, pipeline, config, workers)
        return prediction_frame(trained.network.predict(tqdm(loader, desc=label, unit="batch", disable=None)))

    if views is None:
        return predict(place_transform(trained.pipeline, config, trained.network.device), "predict")
    check_view_size(trained, rows, views.pipelines[0])
    count = len(views.pipelines)
    frames = {
        f"view {number}": predict(pipeline, f"view {number}/{count}")
        for number, pipeline in enumerate(views.pipelines, start=1)
    }
    return combine(frames, [1.0] * count, views.method)


def check_view_size(trained: TrainedNetwork, rows: pd.DataFrame, view: FixedView) -> None:
    """Raise UsageError where a view's pictures have another size than those of the validation."""
    config = trained.config
    datasets = [
        RSNADataset(dataset_folder_of(trained), rows, pipeline, config.data_image_size, config.seed)
        for pipeline in (trained.pipeline, view)
    ]
    view.trial(datasets[1].read(str(rows.index[0])))
    sizes = [dataset[0].size for dataset in datasets]
    if sizes[0] != sizes[1]:
        expected, given = (f"{height} x {width}" for height, width in sizes)
        raise UsageError(
            f"--tta: {view.name} gives pictures of {given} pixels, the network was validated on {expected}; use a file "
            "that gives these"
        )


def sample_submission(trained: TrainedNetwork, split: str) -> Path | None:
    """Return the competition's sample for the test set, None for other splits and for data of another origin."""
    path = dataset_folder(trained.config.data_input_folder, trained.config.data_dataset) / SAMPLE_FILE
    return path if split == "test" and path.is_file() else None


def write_predictions(trained: TrainedNetwork, frame: pd.DataFrame, split: str, path: Path) -> None:
    """Write probabilities: in the competition's form where there is a sample, else a row for each image.

    The sample submission of the test set rules which rows the former has: an image that has no prediction gets the
    training prevalences, with a counted warning; one that the sample doesn't ask for is left out.
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


def compare_with_log(trained: TrainedNetwork, table: pd.DataFrame) -> str:
    """Say in one line whether the evaluation gives the value that the training logged for these weights."""
    logged = trained.metrics[metric_key(MONITOR, trained.weights)]
    difference = abs(float(table.loc[WEIGHTED_ROW, "log_loss"]) - logged)
    if difference <= REPRODUCED:
        return f"reproduces the logged {MONITOR} {logged:.6f} of iteration {trained.iteration}"
    return (
        f"differs by {difference:.2g} from the logged {MONITOR} {logged:.6f} of iteration {trained.iteration}: "
        "another machine, library version, number of threads, or dataset"
    )
