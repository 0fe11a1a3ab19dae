"""--tr_hours: measures how fast a run trains and validates, and gives it the iterations for which there is time."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import psutil
import torch

from common.errors import UsageError
from common.experiments.resume import Run
from common.networks.pace import Pace, measure_pace
from common.sweeps.runner import slots
from common.training import distributed
from common.training.hardware import select_device
from common.training.reproducibility import rng_state, seed_everything, set_rng_state
from config import TrainConfig
from rsna.kinds.kind import TrainingData, kind_of
from rsna.training.run import build_network, build_training_data, choose_precision

HOUR_S = 3600.0
MEASURED_SHARE = 0.01  # of the run's time goes to each of the two measurements,
SHORTEST_S, LONGEST_S = 2.0, 60.0  # but at least and at most so many seconds
# Estimate of a report: python report.py took 6 to 9 seconds of processor time for 580 validation images.
REPORT_S, REPORT_IMAGE_S = 8.0, 0.001


def settle_length(
    config: TrainConfig,
    data: TrainingData,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    started: float,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainConfig:
    """Return the options of a new run with the iterations for which --tr_hours has room, and without --tr_hours.

    A run that is given these iterations by hand trains the same: the measurement leaves no trace. Several processes get
    the number of the first. ``started``: when the run started, in seconds of ``clock``. Raises UsageError if there is
    no time for one optimizer step.
    """
    pace = pace_of_run(config, data, device, amp_dtype, clock, measured_seconds(config.tr_hours))
    images = len(data.valid_loader.dataset)

    def settled() -> TrainConfig:
        left = config.tr_hours * HOUR_S - (clock() - started) - report_seconds(config, images)
        return with_length(config, pace, left)

    return distributed.main_first(settled)


def settle_fold_length(config: TrainConfig, first: TrainConfig, images: Sequence[int], started: float) -> TrainConfig:
    """Return the options of a cross-validation with the iterations of each fold for which --tr_hours has room.

    ``first``: options of the first fold, which is measured for all, in a process of its own: the folds then find the
    GPU's memory free. ``images``: number of validation images of each fold. Errors as :func:`settle_length`.
    """
    places = slots(0, len(images))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        pace, start = process.submit(pace_of_fold, first, places[0], measured_seconds(first.tr_hours)).result()
    rounds = -(-len(images) // len(places))
    left = config.tr_hours * HOUR_S - (time.perf_counter() - started) - report_seconds(config, sum(images))
    return with_length(config, pace, left / rounds - start - report_seconds(config, max(images)))


def measured_seconds(hours: float) -> float:
    """Return for how long a run of so many ``hours`` measures training and validation, each."""
    return min(max(hours * HOUR_S * MEASURED_SHARE, SHORTEST_S), LONGEST_S)


def pace_of_fold(config: TrainConfig, place: Mapping[str, str], seconds: float) -> tuple[Pace, float]:
    """Return the pace of a run, and the seconds from the start of this process until the run's data is there.

    ``place``: the environment variables with which a fold's run starts; see :func:`common.sweeps.runner.slots`.
    ``seconds``: for how long training and validation are measured, each.
    """
    os.environ.update(place)
    seed_everything(config.seed)
    device = select_device(config.n_jobs, tf32=config.tr_tf32, deterministic=config.tr_deterministic)
    config, amp_dtype = choose_precision(Run(config), device)
    data, _ = build_training_data(config, device)
    start = time.time() - psutil.Process().create_time()
    return pace_of_run(config, data, device, amp_dtype, time.perf_counter, seconds), start


def pace_of_run(
    config: TrainConfig,
    data: TrainingData,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    clock: Callable[[], float],
    seconds: float,
) -> Pace:
    """Measure a network like the run's, from random weights; then put random numbers and loaders back."""
    loaders = (data.train_loader, data.valid_loader)
    random, order = rng_state(), data.train_loader.sampler.state_dict()
    drawn = [loader.generator.get_state() for loader in loaders]
    model = kind_of(config).build_model(config, data.channels, None)
    network = build_network(config, data, model, device, amp_dtype)
    model_name = kind_of(config).model_name(config)
    distributed.tell([f"measures training and validation of {model_name}, for about {seconds:.0f} s each"])
    pace = measure_pace(network, seconds, clock)
    del model, network
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    data.train_loader.sampler.load_state_dict(order)
    for loader, state in zip(loaders, drawn, strict=True):
        loader.generator.set_state(state)
    set_rng_state(random)
    return pace


def report_seconds(config: TrainConfig, images: int) -> float:
    """Return the seconds that the report of an experiment with so many validation images may take; 0 without one."""
    return config.tr_report * (REPORT_S + images * REPORT_IMAGE_S)


def with_length(config: TrainConfig, pace: Pace, seconds: float) -> TrainConfig:
    """Return the options with the iterations that take ``seconds``, and say what was measured."""
    interval = config.tr_iteration_valid
    number = pace.iterations(seconds, interval, config.tr_accumulation_step)
    measured = f"{pace.iteration:.3g} s an iteration, {pace.validation:.3g} s a validation"
    if not number:
        needed = config.tr_hours * HOUR_S - seconds + pace.seconds(config.tr_accumulation_step, interval)
        raise UsageError(
            f"--tr_hours={config.tr_hours:.3g}: too short for one optimizer step beside start, validation and report "
            f"({measured}); it takes {math.ceil(needed)}s or more"
        )
    share = -(-number // interval) * pace.validation / pace.seconds(number, interval)
    distributed.tell(
        [f"{measured}: --tr_hours={config.tr_hours:.3g} has room for {number} iterations; {share:.0%} is validations"]
    )
    return replace(config, tr_hours=None, tr_iteration_num=number)
