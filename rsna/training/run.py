"""The steps of a training run: load the data, build the network, open the experiment, start trackers, finish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pandas as pd
import timm
import torch
from torch import Tensor, nn

from common.callbacks.callback import Callback
from common.checkpoint import LAST
from common.cli.arguments import given_options, refuse_given, to_dict
from common.datasets.batch import finished_picture
from common.errors import Interrupted, UsageError
from common.experiments.folder import (
    Experiment,
    add_to_history,
    create_experiment,
    launched_experiment,
    lock_experiment,
)
from common.experiments.resume import Run, check_place, resume_run
from common.files import remove_temporaries, write_csv, write_text
from common.lineage import Lineage
from common.models.facts import measure_model
from common.networks.averaging import build_averages, check_averages
from common.networks.finders import find_batch_size, find_learning_rate, rate_picture
from common.networks.network import AbstractNetwork, Average, Training
from common.reports.record import FAILED, FINISHED, RUNNING, STOPPED, write_status
from common.trackers.jsonl import JsonlTracker
from common.trackers.table import build_trackers, check_trackers
from common.trackers.tracker import Tracker, TrackerGroup
from common.training import distributed
from common.training.hardware import check_graphs, select_amp_dtype
from common.training.losses import build_loss
from common.training.optimizers import build_optimizer
from common.training.schedulers import Schedule, build_schedule
from config import TrainConfig
from rsna.kinds.kind import TrainingData, kind_of
from rsna.training.callbacks import own_callbacks
from rsna.training.lineage import training_lineage
from rsna.training.outcome import Conclude
from rsna.training.provenance import check_features_lineage
from rsna_dataset import (
    LABEL_WEIGHTS,
    dataset_folder,
    read_dataset_info,
)
from rsna_model import computed_by, quickest_way
from rsna_network import RSNANetwork

logger = logging.getLogger(__name__)


def build_training_data(
    config: TrainConfig, device: torch.device, resumed: Mapping[str, Any] | None = None
) -> tuple[TrainingData, Lineage | None]:
    """Build the training data of the configured kind, and the lineage that the trained network will have.

    Errors as :func:`rsna.training.lineage.training_lineage`. Raises UsageError too if a network that made the features
    was trained on the images that it made them of.
    """
    kind = kind_of(config)
    data = kind.build_data(config, device)
    train_ids, valid_ids = data.train_loader.dataset.image_ids, data.valid_loader.dataset.image_ids
    if kind.reads_features and resumed is None:
        check_features_lineage(config, pd.Index(train_ids).append(pd.Index(valid_ids)))
    lineage = training_lineage(config, train_ids, valid_ids, resumed)
    if lineage is not None and lineage.unknown:
        distributed.tell([f"unknown lineage: {', '.join(lineage.unknown)}; results of this network will say so"])
    return data, lineage


def build_optimization(config: TrainConfig, model: nn.Module) -> tuple[torch.optim.Optimizer, Schedule]:
    """Build optimizer and schedule; UsageError for an option that they or the model don't know."""
    given = given_options(config, "optim_", "optim_lr", "optim_weight_decay")
    optimizer = build_optimizer(config.optim, model, config.optim_lr, config.optim_weight_decay, given)
    steps = -(-config.tr_iteration_num // config.tr_accumulation_step)
    return optimizer, build_schedule(config.sched, optimizer, steps, given_options(config, "sched_"))


def choose_precision(run: Run[TrainConfig], device: torch.device) -> tuple[TrainConfig, torch.dtype | None]:
    """Return a run's options with ``auto`` replaced by this device's type of mixed precision, and that type.

    The options are stored with this type, so that a resumed run keeps it. Raises UsageError if the device lacks it.
    """
    config = run.config
    if not config.tr_use_amp:
        return config, None
    name = config.tr_amp_dtype
    if name == "auto" and run.checkpoint is not None:  # an earlier version did not store the type
        name = "float16" if run.checkpoint["scaler"] else "bfloat16"
    try:
        dtype = select_amp_dtype(name, device)
    except UsageError as error:
        if run.checkpoint is None or run.changed:
            raise
        raise UsageError(f"{run.folder} was trained so: {error}, with --tr_resume_change=tr_amp_dtype") from None
    return replace(config, tr_amp_dtype=str(dtype).removeprefix("torch.")), dtype


def training_memory_advice(config: TrainConfig) -> str:
    """Return advice for a training that runs out of memory."""
    hint = "; --tr_batch_find=1 tells what fits" if torch.cuda.is_available() else ""
    pictures = "lower --data_image_size, or " if kind_of(config).sees_pictures else ""
    return (
        f"lower --tr_batch_size={config.tr_batch_size} (and raise --tr_accumulation_step as much for the same steps), "
        f"or {pictures}use --tr_use_amp=1 or a smaller model{hint}"
    )


def check_choices(config: TrainConfig, model: nn.Module, device: torch.device) -> None:
    """Check the chosen components before the experiment's folder exists, so that a bad choice leaves none behind."""
    check_graphs(config.tr_compile, config.tr_accumulation_step, device)
    if config.tr_batch_find and not torch.cuda.is_available():
        raise UsageError("--tr_batch_find=1 needs a GPU: without one the system ends a run that takes too much")
    if config.tr_batch_find and distributed.world_size() > 1:
        raise UsageError("--tr_batch_find=1: look for the size with one process, without torchrun")
    check_trackers(tracker_names(config))
    own_callbacks(config)
    if not config.tr_use_amp:
        refuse_given(config, ("tr_amp_dtype",), "needs --tr_use_amp=1")
    if config.tr_sync_bn:
        distributed.check_synchronized_norms(model)
    build_optimization(config, model)
    build_training_loss(config)
    check_averages(
        {"ema": config.tr_ema, "swa": config.tr_swa},
        given_options(config, "tr_ema_") | given_options(config, "tr_swa_"),
    )


def settle_computing(run: Run[TrainConfig], data: TrainingData, device: torch.device) -> Run[TrainConfig]:
    """Return a new run in which the options that --tr_compute=auto measures to be quickest replace ``auto``.

    A run that is given these options by hand trains the same: the measurement leaves random numbers as they were.
    Raises UsageError for an option that the measurement would override, and on a GPU.
    """
    config = run.config
    settled = ("tr_use_amp", "tr_amp_dtype", "tr_channels_last", "tr_compile")
    refuse_given(config, settled, "doesn't go with --tr_compute=auto, which chooses by measurement; leave one out")
    if device.type == "cuda":
        raise UsageError("--tr_compute=auto is for a CPU; on a GPU give --tr_use_amp=1 and --tr_channels_last=1")
    shape = finished_picture(data.train_loader.dataset, 0).shape
    with torch.random.fork_rng(devices=[]):
        model = kind_of(config).build_architecture(config, data.channels)
    way = quickest_way(config, model, shape, training=True)
    return replace(run, config=replace(computed_by(config, way), tr_compute=TrainConfig.tr_compute))


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the disk space that a run needs: best.pt, three copies of last.pt with two moments, and its logs."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return 11 * weights + 50_000_000


@contextmanager
def find_run(config: TrainConfig, arguments: Sequence[str]) -> Iterator[Run[TrainConfig]]:
    """Yield the run that ``--tr_resume`` names or torchrun restarts, with its lock held; otherwise a new run."""
    resume = config.tr_resume
    if resume is None and distributed.any_process(distributed.restarts() > 0):
        resume = distributed.main_first(lambda: launched_experiment(config.output_dir, distributed.launch_id()))
    if resume is None:
        yield Run(config)
        return
    with resume_run(TrainConfig, arguments, resume, config.tr_resume_change, config.output_dir) as run:
        check_place(config, run.folder)
        if config.cv_run is not None:
            raise UsageError(f"--cv_run={config.cv_run}: {run.folder} is no cross-validation; leave it out")
        if config.tr_hours is not None:
            distributed.tell([f"--tr_hours: a resumed run keeps its {run.config.tr_iteration_num} iterations"])
        place = {"output_dir": run.folder.parent, "experiment_id": run.folder.name, "tr_hours": None}
        yield replace(run, config=replace(run.config, tr_resume=None, tr_resume_change=(), **place))


@contextmanager
def claim_experiment(
    run: Run[TrainConfig], config: TrainConfig, data: TrainingData, model: nn.Module, arguments: Sequence[str]
) -> Iterator[Experiment]:
    """Yield the experiment: a new one with its lock held, or the resumed one, cut back to its checkpoint."""
    typed = ["python", "train.py", *arguments]
    if run.folder is not None:
        run.check_data(data.hash, data.transforms)
        if distributed.is_main():
            run.cut_back()
            add_to_history(run.folder, typed, run.iteration, to_dict(config), run.changed)
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
    """If a signal stopped the run, raise :class:`Interrupted` with the command that continues it."""
    if network.interrupted:
        default = config.output_dir == TrainConfig.output_dir
        where = experiment.id if default else experiment.folder / LAST
        raise Interrupted(
            f"interrupted after iteration {network.iteration} of {config.tr_iteration_num}, state saved; go on with: "
            f"python train.py --tr_resume={where}"
        )


def build_network(
    config: TrainConfig,
    data: TrainingData,
    model: nn.Module,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    callbacks: Sequence[Callback] = (),
) -> RSNANetwork:
    """Build a network that is ready to fit from data, model, optimizer, schedule and callbacks."""
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
        callbacks=callbacks,
        monitor=f"valid/{data.level.metric}",
        clip_norm=config.tr_clip_norm,
        nonfinite=config.tr_nonfinite,
        nonfinite_limit=config.tr_nonfinite_limit,
        averages=build_weight_averages(config, model),
    )
    loss = build_training_loss(config, device)
    return kind_of(config).build_network(config, model, device, amp_dtype, training, loss, data)


def build_training_loss(config: TrainConfig, device: torch.device | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the training loss for logits on ``device``; UsageError for an option that the loss doesn't know."""
    return build_loss(config.loss, given_options(config, "loss_"), LABEL_WEIGHTS, device)


def build_weight_averages(config: TrainConfig, model: nn.Module) -> dict[str, Average]:
    """Build the chosen averages of the weights; UsageError for an option of an average that is not chosen."""
    steps = -(-config.tr_iteration_num // config.tr_accumulation_step)
    given = given_options(config, "tr_ema_") | given_options(config, "tr_swa_")
    return build_averages(model, steps, {"ema": config.tr_ema, "swa": config.tr_swa}, given)


def report_start(config: TrainConfig, data: TrainingData, network: RSNANetwork) -> None:
    """Print and log what will run: model, data, steps, estimated memory, seed and versions."""
    batch = network.prepare_batch(data.train_loader.collate_fn([data.train_loader.dataset[0]]))
    inputs = network.inputs_of(batch)
    facts = measure_model(network.model, *inputs)
    kind = kind_of(config)
    what = kind.unit
    training = network.training
    averages = config.tr_ema + config.tr_swa
    images = (len(data.train_loader.dataset), len(data.valid_loader.dataset))
    processes = distributed.world_size()
    effective = config.tr_batch_size * config.tr_accumulation_step * processes
    shared = f" in each of {processes} processes" if processes > 1 else ""
    info = read_dataset_info(dataset_folder(config.data_input_folder, config.data_dataset))
    needed = facts.training_bytes(config.tr_batch_size, moments=2, copies=averages)
    lines = (
        f"model {kind.model_name(config)}: {facts.parameters / 1e6:.2f} M parameters, {facts.trainable / 1e6:.2f} M "
        f"trained, {facts.flops / 1e9:.2f} GFLOPs for {kind.describe_sample(batch, inputs[0])}",
        f"data {config.data_dataset} fold {config.data_fold}: {images[0]} training and {images[1]} "
        f"validation {what}, dataset {info.get('hash', 'without a hash')}",
        f"{training.iteration_num} iterations of {config.tr_batch_size} {what}{shared} = {training.step_num} steps of "
        f"{effective} = {training.iteration_num / training.iterations_per_epoch:.2f} epochs, {config.optim}, "
        f"{config.sched}, seed {config.seed}",
        f"memory about {needed / 1e9:.2f} GB in float32 on {network.device.type}{shared} (weights, gradients, two "
        f"moments, activations), torch {torch.__version__}, timm {timm.__version__}",
    )
    distributed.tell(lines)


def run_finders(config: TrainConfig, experiment: Experiment, network: RSNANetwork) -> None:
    """Search as --tr_batch_find and --tr_lr_find ask, and print the results; the network stays as it was."""
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
    distributed.tell(lines)


def tracker_names(config: TrainConfig) -> list[str]:
    """Return the names of the chosen trackers."""
    return [*config.trackers, *["neptune"] * config.nml_enabled]


@contextmanager
def observed(config: TrainConfig, experiment: Experiment, conclude: Conclude) -> Iterator[Tracker]:
    """Yield the started trackers: metrics.jsonl, and those that the options choose.

    When the run ends, even by an error, call ``conclude`` and tell the trackers how it ended: finished, stopped or
    failed. ``status.json`` holds the same word.
    """
    trackers: list[Tracker] = [JsonlTracker()] if distributed.is_main() else []
    if distributed.is_main() and not config.dev_enabled:
        neptune = {"project": config.nml_project, "mode": config.nml_mode}
        trackers += build_trackers(tracker_names(config), {"neptune": neptune})
    group = TrackerGroup(trackers)
    status = FAILED
    try:
        if distributed.is_main():
            write_status(experiment.folder, RUNNING)
        group.start(experiment.id, experiment.folder, to_dict(config))
        distributed.tell(group.view().splitlines())
        for name in ("config.yaml", "environment.json"):
            group.log_file(experiment.folder / name)
        yield group
        status = FINISHED
    except (KeyboardInterrupt, Interrupted):
        status = STOPPED
        raise
    finally:
        if distributed.is_main():
            conclude(experiment.folder, status, report=config.tr_report, tracker=group)
        group.finish(status)


def conclude_again(run: Run[TrainConfig], conclude: Conclude) -> None:
    """Write status, report and leaderboard of a fully trained run again, in case it was killed before it wrote them."""
    if distributed.is_main():
        remove_temporaries(run.folder)
        conclude(run.folder, FINISHED, report=run.config.tr_report)
