"""What plan.py does: fingerprints, measured or estimated speed, and the experiments that the hours have room for.

A plan is a list of experiments for ``sweep.py --lines``, with the reason and the predicted hours beside each line.
Every training gets its share as --tr_hours, so that it measures its own speed again and ends in time.
"""

from __future__ import annotations

import math
import multiprocessing
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.cli.arguments import parse_args
from common.cli.console import tell
from common.cli.values import format_folds
from common.errors import UsageError
from common.evaluation.texts import format_table
from common.experiments.folder import check_experiment_id
from common.files import write_text
from common.models.facts import measure_model
from common.networks.pace import Pace
from config import TrainConfig
from rsna.kinds.features import FEWEST_FOLDS
from rsna.kinds.kind import kind_of
from rsna.training.fingerprint import Fingerprint, Machine, read_fingerprint, read_machine
from rsna.training.length import HOUR_S, measured_seconds, pace_of_fold, report_seconds
from rsna.training.options import PlanConfig
from rsna.training.plan_rules import (
    ADJUSTMENTS,
    CANDIDATES,
    COSTS,
    ESTIMATED_START_S,
    FEWEST_ITERATIONS,
    GPUS,
    MEMORY_SHARE,
    REFERENCE,
    REFERENCE_PIXELS,
    RESERVE,
    SCHEMES,
    SEQUENCE_BATCH,
    SEQUENCE_FEWEST_S,
    SEQUENCE_FLAGS,
    SEQUENCE_SERIES_S,
    SEQUENCE_SHARE,
    VALIDATION_SPEED,
    VALIDATIONS,
    Candidate,
    Scheme,
)

MEASURED_S = 3.0  # of training and of validation, for each candidate: a minute for three with their starts
WELL_USED = 0.9  # share of the hours; a plan that takes less says why
CHANNELS = 3  # windows of an image, for the memory of a model that isn't built from data


@dataclass(frozen=True)
class Speed:
    """A candidate on a machine: ``flags`` and options of train.py, pace, and seconds to start a run.

    ``notes``: why options differ from the candidate's own.
    """

    candidate: Candidate
    flags: tuple[str, ...]
    config: TrainConfig
    pace: Pace
    start: float
    notes: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Training images a second."""
        return self.config.tr_batch_size / self.pace.iteration

    def seconds(self, iterations: int) -> float:
        """Return the time of one training run without its start and report."""
        return self.pace.seconds(iterations, self.interval(iterations))

    def interval(self, iterations: int) -> int:
        """Return the iterations between validations, a multiple of those of an optimizer step."""
        step = self.config.tr_accumulation_step
        return max(1, math.ceil(iterations / VALIDATIONS / step)) * step


@dataclass(frozen=True)
class Line:
    """A line of a plan: its words, predicted seconds with all that follows it, and why it is there."""

    words: tuple[str, ...]
    what: str
    seconds: float
    why: str


@dataclass(frozen=True)
class Choice:
    """A scheme with its networks and folds, and how the seconds are divided.

    ``rounds``: of folds, as many side by side as there are GPUs. ``train_s``, ``sequence_s``: of each training of a
    slice network and of a sequence model. ``others_s``: of all that is no training of a slice network.
    """

    scheme: Scheme
    folds: tuple[int, ...]
    rounds: int
    speeds: tuple[Speed, ...]
    data: Fingerprint
    train_s: float
    sequence_s: float
    others_s: float

    @property
    def needed_s(self) -> float:
        """Seconds that each training of a slice network needs at least."""
        return max(self.seconds(speed, speed.candidate.fewest) for speed in self.speeds)

    def seconds(self, speed: Speed, passes: float) -> float:
        """Return the seconds of a training with so many passes over the training images of each fold."""
        iterations = math.ceil(passes * self.data.train_images / speed.config.tr_batch_size)
        return self.around_s(speed) + self.rounds * speed.seconds(iterations)

    def around_s(self, speed: Speed) -> float:
        """Return the seconds of a training that no fold gets: starts, the measurement for --tr_hours, reports."""
        measurement = 2 * measured_seconds(max(self.train_s, 0) / HOUR_S) + speed.pace.warm_up
        report = report_seconds(speed.config, self.data.valid_images)
        if len(self.folds) == 1:
            return speed.start + measurement + report
        together = cost("join", speed.start) + report_seconds(speed.config, self.data.images)
        return 2 * speed.start + measurement + self.rounds * (speed.start + report) + together

    def iterations(self, speed: Speed) -> int:
        """Return the iterations of each fold for which a training has time; 0 or less if there is none."""
        free = (self.train_s - self.around_s(speed)) / self.rounds
        return math.floor((free - speed.pace.warm_up - VALIDATIONS * speed.pace.validation) / speed.pace.iteration)

    def passes(self, speed: Speed) -> float:
        """Return how often a training sees each training image of a fold."""
        return self.iterations(speed) * speed.config.tr_batch_size / self.data.train_images


@dataclass
class Plan:
    """A plan: its lines, what was given up for the hours, and remarks."""

    lines: list[Line] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    seconds_before: float = 0.0

    @property
    def seconds(self) -> float:
        """Predicted seconds, with those that planning took."""
        return self.seconds_before + sum(line.seconds for line in self.lines)


def make_plan(config: PlanConfig, started: float) -> Path:
    """Print a plan, save it in the folder of results and return its file; a plan that is there is kept.

    ``started``: when the command started, by ``time.perf_counter``. Raises UsageError for hours in which nothing can be
    trained, and as :func:`read_fingerprint` and :func:`read_machine`.
    """
    elsewhere = "" if config.gpus is None else f"_{config.gpus.replace(',', '-')}"
    name = config.experiment_id or f"{config.data_dataset}_{config.hours:.4g}h{elsewhere}"
    check_experiment_id(name)
    path = config.output_dir / f"plan_{name}.txt"
    if path.exists():
        tell(f"{path} is there and stays, so that its experiments go on; remove it, or give another --experiment_id")
        return path
    data = read_fingerprint(config.data_input_folder, config.data_dataset)
    machine = read_machine(config.gpus, config.n_jobs)
    speeds = list(measured(config, data, machine) if machine.here else estimated(config, data, machine))
    plan = fill(config, name, data, machine, speeds, time.perf_counter() - started if machine.here else 0.0)
    text = describe(config, data, machine, speeds, plan)
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_file(text, plan))
    return path


def data_flags(config: PlanConfig) -> list[str]:
    """Return the flags of dataset and cores for train.py."""
    place = [f"--data_input_folder={config.data_input_folder}", f"--data_dataset={config.data_dataset}"]
    return [*place, *([f"--n_jobs={config.n_jobs}"] if config.n_jobs else [])]


def adjusted(config: PlanConfig, data: Fingerprint, candidate: Candidate) -> tuple[tuple[str, ...], list[str]]:
    """Return a candidate's flags for this dataset, and why they differ; UsageError for wrong --flags."""
    try:
        own = shlex.split(config.flags)
    except ValueError as error:
        raise UsageError(f"--flags: {error}") from None
    flags = [*candidate.flags, *data_flags(config), *own]
    options = parse_args(TrainConfig, flags)
    notes = []
    for rule in ADJUSTMENTS:
        value = rule.value(options, data)
        if value is not None:
            flags.append(f"--{rule.option}={value}")
            notes.append(f"{rule.option} {value}: {rule.why}")
    return tuple(flags), notes


def measured(config: PlanConfig, data: Fingerprint, machine: Machine) -> Iterator[Speed]:
    """Yield the speed of each candidate on this machine, measured in a process of its own by the project's training."""
    fold = data.folds[0]
    for candidate in CANDIDATES[machine.device]:
        flags, notes = adjusted(config, data, candidate)
        options = parse_args(TrainConfig, [*flags, f"--data_fold={fold}"])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            try:
                pace, start = process.submit(pace_of_fold, options, {}, MEASURED_S).result()
            except torch.OutOfMemoryError:
                tell(f"{candidate.name}: left out, the GPU's memory is too small for it")
                continue
        yield Speed(candidate, flags, options, pace, start, tuple(notes))


def estimated(config: PlanConfig, data: Fingerprint, machine: Machine) -> Iterator[Speed]:
    """Yield the speed of each candidate on a GPU of the table, by its memory's bandwidth."""
    gpu = GPUS[machine.gpu]
    for candidate in CANDIDATES["cuda"]:
        flags, notes = adjusted(config, data, candidate)
        options = parse_args(TrainConfig, [*flags, f"--data_fold={data.folds[0]}"])
        channels, size = CHANNELS * (2 * options.data_context + 1), options.data_image_size
        model = kind_of(options).build_architecture(options, channels)
        needed = measure_model(model, torch.zeros(1, channels, size, size)).training_bytes(options.tr_batch_size, 2, 1)
        if options.tr_use_amp:
            needed /= 2  # most activations in 16 bits
        if needed > MEMORY_SHARE * gpu.memory_gb * 1e9:
            tell(f"{candidate.name}: left out, it needs about {needed / 1e9:.0f} GB of GPU memory; a smaller "
                 "--tr_batch_size in --flags makes room")  # fmt: skip
            continue
        scale = gpu.bandwidth / GPUS[REFERENCE].bandwidth * (REFERENCE_PIXELS / size) ** 2
        rate = candidate.rate_3090 * scale
        pace = Pace(options.tr_batch_size / rate, data.valid_images / (VALIDATION_SPEED * rate))
        yield Speed(candidate, flags, options, pace, ESTIMATED_START_S, tuple(notes))


def fill(
    config: PlanConfig, name: str, data: Fingerprint, machine: Machine, speeds: Sequence[Speed], before: float
) -> Plan:
    """Return the first scheme's plan that fits the hours, ``before`` of which (in seconds) is over."""
    if not speeds:
        raise UsageError("none of the candidates fits the GPU's memory; give --flags=--tr_batch_size=8, or less")
    plan = Plan(seconds_before=before)
    left = config.hours * HOUR_S * (1 - RESERVE) - before
    for scheme in SCHEMES:
        if scheme.folds is not None and scheme.folds > len(data.folds):
            continue
        if scheme.sequences and len(data.folds) < FEWEST_FOLDS:
            plan.given_up.append(f"{scheme.name}: needs {FEWEST_FOLDS} folds, the dataset has {len(data.folds)}")
            continue
        choices = [
            divide(scheme, tuple(speeds[first : first + scheme.networks]), data, machine, left)
            for first in range(len(speeds) - scheme.networks + 1)
        ]
        choice = next((choice for choice in choices if choice.train_s >= choice.needed_s), None)
        if choice is not None:
            plan.lines += lines_of(config, name, data, choice)
            return plan
        fewest = min((choice.others_s + scheme.networks * choice.needed_s for choice in choices), default=math.inf)
        if math.isfinite(fewest):
            plan.given_up.append(f"{scheme.name}: takes {hours((fewest + before) / (1 - RESERVE))} or more")
    plan.given_up.pop()  # the poorest scheme is what is left, with fewer passes than it should have
    choice = divide(SCHEMES[-1], (speeds[-1],), data, machine, left)
    (speed,) = choice.speeds
    if choice.iterations(speed) < FEWEST_ITERATIONS:
        fewest = choice.others_s + choice.around_s(speed) + speed.seconds(FEWEST_ITERATIONS)
        raise UsageError(
            f"--hours={config.hours:.3g}: too short; {choice.scheme.name}, the smallest candidate, takes "
            f"{math.ceil((fewest + before) / (1 - RESERVE))}s or more"
        )
    plan.given_up.append(
        f"{speed.candidate.fewest:g} passes over the training images: there is time for {choice.passes(speed):.1f}"
    )
    plan.lines += lines_of(config, name, data, choice)
    return plan


def divide(scheme: Scheme, speeds: tuple[Speed, ...], data: Fingerprint, machine: Machine, left: float) -> Choice:
    """Divide ``left`` seconds over the experiments of a scheme."""
    folds = data.folds[: scheme.folds]
    rounds = -(-len(folds) // machine.places)
    start = max(speed.start for speed in speeds)
    features = bool(scheme.sequences)
    others = sum(after_training(speed, folds, data, features) for speed in speeds)
    sequence_s, models = 0.0, len(scheme.sequences) * len(speeds)
    if models:
        fewest = (2 + rounds) * start + rounds * SEQUENCE_FEWEST_S + report_seconds(speeds[0].config, data.images)
        most = fewest + data.train_series * rounds * SEQUENCE_SERIES_S[machine.device]
        sequence_s = min(max(fewest, SEQUENCE_SHARE * left / models), most)
        others += models * (sequence_s + after_sequence(start, data))
    if scheme.second_level:
        others += cost("second_level.py", start, data.images)
    if models + scheme.second_level > 1:
        others += cost("ensemble.py", start, data.images)
    choice = Choice(scheme, folds, rounds, speeds, data, (left - others) / len(speeds), sequence_s, others)
    most = max(choice.seconds(speed, speed.candidate.most) for speed in speeds)
    return replace(choice, train_s=min(choice.train_s, most))


def cost(command: str, start: float, images: int = 0) -> float:
    """Return the seconds of a command of COSTS."""
    return COSTS[command].starts * start + COSTS[command].image_s * images


def after_training(speed: Speed, folds: Sequence[int], data: Fingerprint, features: bool) -> float:
    """Return the seconds of what follows a training: evaluation, test images, and features for sequence models."""
    cross_validated = len(folds) > 1
    judged = data.images if cross_validated else data.valid_images
    # A single network predicts its validation images again for the evaluation; a cross-validation has predicted them.
    predicted = len(folds) * data.test_images * (1 + features) + features * data.images
    predicted += 0 if cross_validated else data.valid_images
    commands = cost("evaluate.py", speed.start, judged) + cost("predict.py", speed.start) * (1 + features)
    return commands + predicted * speed.pace.validation / data.valid_images


def after_sequence(start: float, data: Fingerprint) -> float:
    """Return the seconds of what follows the training of a sequence model."""
    return cost("evaluate.py", start, data.images) + cost("predict.py", start)


def lines_of(config: PlanConfig, name: str, data: Fingerprint, choice: Choice) -> Iterator[Line]:
    """Yield the lines of a choice."""
    scheme, folds = choice.scheme, choice.folds
    fold = "all" if folds == data.folds and len(folds) > 1 else format_folds(folds)
    start, networks, members = max(speed.start for speed in choice.speeds), [], []
    for speed in choice.speeds:
        own, options = f"{name}_{speed.candidate.name}", speed.config
        words = (
            f"--experiment_id={own}",
            *speed.flags,
            f"--data_fold={fold}",
            f"--tr_iteration_valid={speed.interval(max(1, choice.iterations(speed)))}",
            f"--tr_hours={choice.train_s / HOUR_S:.4g}",
        )
        what = (
            f"{options.net_model}, {options.data_image_size} pixels, batch {options.tr_batch_size}, context "
            f"{options.data_context}, fold {fold}"
        )
        passes = f"about {choice.passes(speed):.1f} passes over the training images"
        seconds = choice.train_s + after_training(speed, folds, data, bool(scheme.sequences))
        yield Line(words, what, seconds, "; ".join([speed.candidate.why, passes, *speed.notes]))
        networks.append(own)
        for model in scheme.sequences:
            members.append(f"{own}_{model}")
            words = (
                f"--experiment_id={members[-1]}",
                *SEQUENCE_FLAGS,
                *data_flags(config),
                f"--data_fold={fold}",
                f"--seq_features={own}",
                f"--seq_model={model}",
                f"--tr_batch_size={min(SEQUENCE_BATCH, data.train_series)}",
                f"--tr_hours={choice.sequence_s / HOUR_S:.4g}",
            )
            why = f"a slice is judged better beside its neighbours: series have {data.slices[1]:.0f} slices (median)"
            seconds = choice.sequence_s + after_sequence(start, data)
            yield Line(words, f"{model} over the features of {own}", seconds, why)
    if scheme.second_level:
        words = ("second_level.py", *networks, *members, f"--experiment_id={name}_level")
        why = "trees over the out-of-fold predictions of neighbouring slices"
        yield Line(words, "second level", cost("second_level.py", start, data.images), why)
        members.append(f"{name}_level")
    if len(members) > 1:
        words = ("ensemble.py", *members, "--ens_fit=weights", f"--experiment_id={name}_final")
        why = "members err in other places; the fitted weights are judged on other patients"
        yield Line(words, "ensemble", cost("ensemble.py", start, data.images), why)


def hours(seconds: float) -> str:
    """Write seconds as hours."""
    return f"{seconds / HOUR_S:.3g} h"


def describe(config: PlanConfig, data: Fingerprint, machine: Machine, speeds: Sequence[Speed], plan: Plan) -> str:
    """Return a plan as text for a console."""
    how = "measured here" if machine.here else "estimated, not measured"
    rates = [
        {
            "model": speed.config.net_model,
            "pixels": speed.config.data_image_size,
            "batch": speed.config.tr_batch_size,
            "context": speed.config.data_context,
            "images/s": f"{speed.rate:.3g}",
            "s a validation": f"{speed.pace.validation:.3g}",
        }
        for speed in speeds
    ]
    table = pd.DataFrame(rates, index=pd.Index([speed.candidate.name for speed in speeds], name="candidate"))
    rows = pd.DataFrame(
        [{"what": line.what, "predicted": hours(line.seconds)} for line in plan.lines],
        index=pd.Index(np.arange(1, len(plan.lines) + 1), name="line"),
    )
    spare = plan.seconds < WELL_USED * config.hours * HOUR_S
    parts = [
        str(data),
        f"{machine}: {how}",
        format_table(table),
        format_table(rows),
        "\n".join(f"line {number}: {line.why}" for number, line in enumerate(plan.lines, 1)),
        *(["given up for the hours:\n" + "\n".join(f"- {words}" for words in plan.given_up)] if plan.given_up else []),
        *(
            ["the rest of the hours is free: more passes than a candidate's most, in plan_rules.py, seldom help"]
            * spare
        ),
        f"predicted {hours(plan.seconds)} of {config.hours:.4g} h, {hours(plan.seconds_before)} of it for planning; "
        f"{how}",
    ]
    return "\n\n".join(parts)


def as_file(text: str, plan: Plan) -> str:
    """Return a plan in the form of ``sweep.py --lines``: the text as comments, then each line below its reason."""
    parts = ["# A plan of plan.py; run it: python sweep.py --lines=THIS_FILE", *comment(text), ""]
    for line in plan.lines:
        parts += [f"# {line.what}: {hours(line.seconds)} predicted; {line.why}", shlex.join(line.words)]
    return "\n".join(parts) + "\n"


def comment(text: str) -> list[str]:
    """Return lines as comments."""
    return [f"# {line}".rstrip() for line in text.splitlines()]
