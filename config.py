"""Every option of every command: one field is its type, its only default, its help and its range. Nothing else.

``common.cli.arguments.parse_args`` builds a configuration. The classes it inherits from are the groups that ``--help``
shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli.arguments import REQUIRED, option
from common.errors import UsageError

Windows = tuple[tuple[float, float], ...]

# Names only, so that --help needs no table; a test holds them equal to the tables.
OPTIMIZERS = (
    "sgd",
    "rmsprop",
    "adagrad",
    "adadelta",
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "nadamw",
    "radam",
    "radamw",
    "adabelief",
    "adopt",
    "adan",
    "adafactor",
    "lamb",
    "lars",
    "lion",
    "laprop",
    "madgrad",
    "mars",
    "muon",
)

WAYS = ("float32", "channels_last", "bfloat16")

SEQUENCE, STUDY = "sequence", "study"
DRAWS = 1000  # bootstrap draws of patients, for console, evaluation and report alike
AUTO = "auto"
TRAINING = "training"  # as --net_compute: as the network was trained
CHECKPOINT = "checkpoint"  # as a form of export
HOLDOUT = "holdout"  # as a fold: all folds train, what was kept out of them validates
OF_ANY_KIND = {"net_kind", "data_input_folder", "data_dataset", "data_fold", "cv_run"}

_WINDOW = re.compile(r"([+-]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def parse_windows(text: str) -> Windows:
    """Read ``centre/width,centre/width`` in Hounsfield units; ValueError for anything else or a width of 0."""
    windows = []
    for part in text.split(","):
        match = _WINDOW.fullmatch(part.strip())
        if match is None or float(match[2]) == 0:
            raise ValueError(f"{part!r} is not centre/width in HU with a width above 0, as in 40/80,80/200")
        windows.append((float(match[1]), float(match[2])))
    return tuple(windows)


def parse_names(text: str) -> tuple[str, ...]:
    """Read ``name,name``, with or without the dashes of a flag; an empty text is no name."""
    return tuple(part.strip().removeprefix("--") for part in text.split(",") if part.strip())


def format_windows(windows: Windows) -> str:
    """Write windows in the form that :func:`parse_windows` reads."""
    return ",".join(f"{center:.12g}/{width:.12g}" for center, width in windows)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read ``0.9,0.999``; ValueError for what is no number, negative or not finite."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers such as 0.9,0.999") from None
    if not all(0 <= number < float("inf") for number in numbers):
        raise ValueError(f"{text!r}: the numbers must be finite and at least 0")
    return numbers


def parse_weight_file(text: str) -> Path:
    """Return the path that a text names; of an experiment's folder that of its best weights."""
    path = Path(text)
    return path / "best.pt" if (path / "best.pt").is_file() else path


def parse_folds(text: str) -> int | str | tuple[int, ...]:
    """Read a fold's number, several (``0,1,2``) as a tuple, ``all`` as an empty one, or ``holdout``; or ValueError."""
    if text.strip().lower() == "all":
        return ()
    if text.strip().lower() == HOLDOUT:
        return HOLDOUT
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,4}", part) for part in parts):
        raise ValueError(f"{text!r} is not a fold's number, numbers such as 0,1,2, all, or holdout")
    folds = tuple(int(part) for part in parts)
    if len(set(folds)) < len(folds):
        raise ValueError(f"{text!r} names a fold twice")
    return folds[0] if len(folds) == 1 else folds


def format_folds(folds: int | str | tuple[int, ...]) -> str:
    """Write folds in the form that :func:`parse_folds` reads."""
    if isinstance(folds, tuple):
        return ",".join(map(str, folds)) or "all"
    return str(folds)


def format_numbers(numbers: tuple[float, ...] | None) -> str:
    """Write numbers in the form that :func:`parse_numbers` reads."""
    return "none" if numbers is None else ",".join(repr(number) for number in numbers)


def refuse_given(config: Any, names: Iterable[str], why: str) -> None:
    """Raise UsageError, "--name ``why``", for the first of ``names`` that has another value than its default."""
    for name in names:
        if getattr(config, name) != config.__dataclass_fields__[name].default:
            raise UsageError(f"--{name} {why}")


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """Console."""

    verbosity: int = option(
        1,
        "0: warnings, errors and the path of the result only; 1: what goes on; 2: all that is logged too",
        minimum=0,
        maximum=2,
        changeable=True,
    )


@dataclass(frozen=True, kw_only=True)
class GeneralOptions(ConsoleOptions):
    """General."""

    n_jobs: int = option(0, "CPU cores to use; 0: all there are", minimum=0, maximum=4096, changeable=True)


@dataclass(frozen=True, kw_only=True)
class DataLocation:
    """Data location."""

    data_input_folder: Path = option(
        Path("./input"), "folder of the competition's files and of datasets/", changeable=True
    )
    data_dataset: str = option("rsna", "name of the dataset: a folder under <data_input_folder>/datasets")


@dataclass(frozen=True, kw_only=True)
class PseudonymOptions:
    """Patients' names."""

    pseudonym_key: Path | None = option(
        None,
        "file of the key that turns names of patients, studies, series and images into pseudonyms; made where it is "
        "missing, and id_map_….csv beside it says which file and patient each id stands for; none: pseudonyms.key in "
        "--data_input_folder",
    )


@dataclass(frozen=True, kw_only=True)
class ResultsLocation(ConsoleOptions):
    """Results."""

    output_dir: Path = option(Path("./output/results"), "folder that holds the experiments' folders", changeable=True)


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(ResultsLocation, GeneralOptions):
    """Experiment."""

    experiment_id: str | None = option(
        None, "name of the experiment and its folder; none: the next free number", changeable=True
    )
    seed: int = option(0, "seed of the weights, the order of images and the augmentation", minimum=0, maximum=2**31 - 1)
    dev_enabled: bool = option(
        False, "1: a rehearsal: no tracker messages, log on the console, a small part of the data"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(DataLocation):
    """Data."""

    data_fold: int | str | tuple[int, ...] = option(
        0,
        "fold that is held out for validation; all, or several as in 0,1,2: cross-validation, a run for each in one "
        "experiment; holdout: the images of all folds train, and those that --pre_holdout kept out of them validate",
        parse=parse_folds,
        form=format_folds,
        metavar="N|N,N|all|holdout",
    )
    cv_run: int | None = option(
        None,
        "of a cross-validation train this fold only, in the experiment that --experiment_id names, which is made or "
        "joined: for the jobs of a cluster; the last to finish puts the folds together. none: all here",
        minimum=0,
        changeable=True,
    )
    data_train_transform: str = option(
        "train_demo.json", "albumentations JSON for training images; a bare name is looked up in transforms/"
    )
    data_valid_transform: str = option(
        "valid_demo.json", "albumentations JSON for validation and test images; a bare name is looked up in transforms/"
    )
    data_transform_fuse: bool = option(
        False,
        "1: all steps that move pixels become one warp: quicker and sharper, since a picture is interpolated once; "
        "what lies beyond a border differs; holds for validation and --tta too",
    )
    data_transform_device: str = option(
        "auto",
        "where transforms are computed, with the same draws: cpu: picture by picture in the loading processes; cuda: "
        "whole batches on the GPU; auto: there if there is one. A file with a step that has no form for batches stays "
        "on the CPU and says so",
        choices=("auto", "cpu", "cuda"),
    )
    data_windows: Windows = option(
        parse_windows("40/80,80/200,40/380"),
        "windows (centre/width in HU), a channel each, put before a transform file that has no DicomWindowShift",
        parse=parse_windows,
        form=format_windows,
    )
    data_image_size: int = option(
        96, "pixels of the longer side (area rule, padded to a square with air); 0: as stored", minimum=0, maximum=4096
    )
    data_context: int = option(
        0,
        "neighbouring slices on each side, by position in the series, whose windows become channels too (2.5-D): 1 "
        "with 3 windows gives 9 channels",
        minimum=0,
        maximum=10,
    )


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Order of the training images. Where an option says "none", the sampler's own value holds."""

    data_sampler: str = option(
        "random",
        "order of the training images; --list=sampler tells of each with its --sampler_... options",
        choices=("random", "sequential", "balanced", "study", "hard"),
    )
    sampler_label: str | None = option(None, "balanced: the label to balance by")
    sampler_share: float | None = option(None, "balanced: share of the images that are positive", minimum=0, maximum=1)
    sampler_slices: int | None = option(None, "study: images of each study in an epoch", minimum=1, maximum=10_000)
    sampler_power: float | None = option(None, "hard: power of the loss to which chances are proportional", minimum=0)
    sampler_floor: float | None = option(None, "hard: share of an epoch that is drawn evenly", minimum=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Network."""

    net_kind: str = option(
        "slice",
        "slice: a network for slices; sequence: a model over the slices of a series, on features of slice networks; "
        "study: both as one, from the pictures of whole series, starting from a slice network (--net_weight_file)",
        choices=("slice", SEQUENCE, STUDY),
    )
    net_model: str = option("resnet10t", "name of a timm model; the default is small enough for a laptop")
    net_pretrained: bool = option(False, "1: start from timm's ImageNet weights (from the network or the hub's cache)")
    net_weight_file: Path | None = option(
        None,
        "start from these weights: a best.pt of this project, a file of timm or torchvision, a state dict, "
        "safetensors; an experiment's folder means its best.pt; of a cross-validation over the same folds its folder, "
        "each fold from its own; beats --net_pretrained; none: no",
        parse=parse_weight_file,
        metavar="PATH",
    )
    net_weight_adapt: bool = option(
        False, "1: weights of another number of classes or input channels are adapted, and what was done is printed"
    )
    net_in_chans: int | None = option(
        None,
        "input channels, a check of the windows: another number than the pictures have is refused; none: theirs",
        minimum=1,
        changeable=True,
    )
    net_drop: float = option(0.0, "dropout before the head", minimum=0, maximum=0.99)
    net_drop_path: float = option(0.0, "stochastic depth: rate of the last block", minimum=0, maximum=0.99)
    net_pool: str | None = option(
        None, "global pooling; none: the model's own", choices=("avg", "max", "gem", "attention")
    )
    net_freeze: str = option(
        "none", "what is not trained: norms, backbone (all but the head), or how many layers from the stem on; none"
    )


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """Sequence models (--net_kind=sequence or study). Where an option says "none", the model's own value holds."""

    seq_features: str | None = option(
        None,
        "experiment (id or folder) of a cross-validation, whose out-of-fold features the model is trained on",
        changeable=True,
    )
    seq_model: str = option(
        "gru",
        "kind of sequence model; --list=seq tells of each with the options that it knows",
        choices=("gru", "lstm", "transformer", "conv"),
    )
    seq_inputs: str | None = option(
        None,
        "what it sees of a slice beside its place: features, logits or both",
        choices=("both", "features", "logits"),
    )
    seq_width: int | None = option(None, "width of its layers", minimum=1, maximum=8192)
    seq_layers: int | None = option(None, "number of its layers", minimum=1, maximum=64)
    seq_heads: int | None = option(None, "transformer: attention heads", minimum=1, maximum=64)
    seq_kernel: int | None = option(None, "conv: slices that a convolution spans, odd", minimum=1, maximum=99)
    seq_drop: float | None = option(None, "dropout", minimum=0, maximum=0.99)
    seq_reverse: float | None = option(None, "chance that a training series comes reversed", minimum=0, maximum=1)
    seq_study: str | None = option(
        None,
        "logit of the study: max of the slices'; noisy_or: that any slice is positive; learned: max plus a layer on "
        "slices weighted by attention",
        choices=("max", "noisy_or", "learned"),
    )
    seq_study_weight: float | None = option(None, "weight of the studies' loss beside the slices'", minimum=0)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Networks over whole series of pictures (--net_kind=study)."""

    study_chunk: int = option(
        16, "slices that go through the slice network at once; memory grows with it", minimum=1, changeable=True
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer. Where an option says "none", the optimizer's own value holds, and one it doesn't know is refused."""

    optim: str = option(
        "adamw",
        "optimizer, also as lookahead_<name>; --list=optim tells of each with the options that it knows",
        choices=(*OPTIMIZERS, *(f"lookahead_{name}" for name in OPTIMIZERS)),
        metavar="NAME",
    )
    optim_lr: float = option(1e-3, "learning rate at its highest", minimum=0)
    optim_weight_decay: float = option(
        1e-2, "weight decay of matrices and kernels; biases, norms and position embeddings don't decay", minimum=0
    )
    optim_layer_decay: float | None = option(
        None,
        "each layer's rate as a share of the next one's, counted from the head (1: all the same)",
        minimum=0,
        maximum=1,
    )
    optim_head_factor: float | None = option(None, "the head's learning rate as a multiple of --optim_lr", minimum=0)
    optim_momentum: float | None = option(None, "momentum", minimum=0, maximum=0.9999)
    optim_nesterov: bool | None = option(None, "1: Nesterov's momentum")
    optim_betas: tuple[float, ...] | None = option(
        None, "decay of the running means, as in 0.9,0.999", parse=parse_numbers, form=format_numbers
    )
    optim_eps: float | None = option(None, "added to the denominator", minimum=0)
    optim_alpha: float | None = option(None, "rmsprop: decay of the squared gradient", minimum=0, maximum=0.999999)
    optim_rho: float | None = option(None, "adadelta: decay of the squared gradient", minimum=0, maximum=1)
    optim_lookahead_k: int | None = option(None, "lookahead_...: steps between two slow updates", minimum=1)
    optim_lookahead_alpha: float | None = option(
        None, "lookahead_...: share of the way that the slow weights go", minimum=0, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Schedule, in optimizer steps. Where an option says "none", the schedule's own value holds."""

    sched: str = option(
        "cosine",
        "schedule of the learning rate; --list=sched tells of each with the options that it knows",
        choices=("constant", "step", "multistep", "cosine", "onecycle", "poly", "plateau"),
    )
    sched_warmup: float | None = option(
        None, "steps of linear warm-up; below 1: a share of the run", minimum=0, maximum=1e9
    )
    sched_min: float | None = option(None, "lowest rate as a share of the highest", minimum=0, maximum=1)
    sched_start: float | None = option(None, "onecycle: first rate as a share of the highest", minimum=0, maximum=1)
    sched_gamma: float | None = option(
        None, "step, multistep, plateau: what a drop multiplies the rate by", minimum=0, maximum=1
    )
    sched_step: float | None = option(
        None, "step: steps between drops; below 1: a share of the run", minimum=0, maximum=1e9
    )
    sched_milestones: tuple[float, ...] | None = option(
        None,
        "multistep: steps of the drops, as in 0.5,0.75; below 1: shares of the run",
        parse=parse_numbers,
        form=format_numbers,
    )
    sched_cycles: int | None = option(None, "cosine: cycles in the run", minimum=1, maximum=1000)
    sched_cycle_length: float | None = option(
        None, "cosine: length of a cycle as a multiple of the one before", minimum=0.01, maximum=100
    )
    sched_cycle_height: float | None = option(
        None, "cosine: height of a cycle as a multiple of the one before", minimum=0, maximum=1
    )
    sched_power: float | None = option(None, "poly: power of the curve", minimum=0.01, maximum=100)
    sched_patience: int | None = option(
        None, "plateau: validations without a better value that are borne before a drop", minimum=0
    )
    sched_threshold: float | None = option(
        None, "plateau: how much better a value must be, as a share of it", minimum=0, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Loss. The metric never changes with it."""

    loss: str = option(
        "bce", "training loss; --list=loss tells of each with the options that it knows", choices=("bce", "focal")
    )
    loss_label_weights: tuple[float, ...] | None = option(
        None,
        "a weight for each label, as in 1,1,1,1,1,2, divided by their sum; none: the metric's",
        parse=parse_numbers,
        form=format_numbers,
    )
    loss_positive_weights: tuple[float, ...] | None = option(
        None,
        "bce: how much positives count, one number or one for each label",
        parse=parse_numbers,
        form=format_numbers,
    )
    loss_smoothing: float | None = option(
        None, "label smoothing s: targets become y (1 - s) + s / 2", minimum=0, maximum=1
    )
    loss_gamma: float | None = option(None, "focal: power that lowers the weight of easy labels", minimum=0)
    loss_alpha: float | None = option(
        None, "focal: weight of positives, 1 minus it that of negatives; below 0: both 1", minimum=-1, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class AveragingOptions:
    """Averages of the weights, validated and saved beside them; best.pt says which were best."""

    tr_ema: bool = option(False, "1: exponential moving average of the weights")
    tr_ema_decay: float | None = option(None, "its decay, which warms up", minimum=0, maximum=0.999999)
    tr_swa: bool = option(False, "1: equal average of the weights over the end of the run (SWA)")
    tr_swa_start: float | None = option(
        None, "share of the run after which that average begins", minimum=0, maximum=0.999
    )


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Watching."""

    tr_early_stop: int = option(0, "end the run after so many validations without a better value; 0: never", minimum=0)
    tr_early_stop_delta: float | None = option(
        None, "how much lower than the best a value must be to count as better; none: 0", minimum=0
    )
    list: str | None = option(
        None,
        "print what there is, and end: optim, sched, sampler, loss, pool, tracker, seq, transform, or model[:pattern] "
        "(a part of the name or a pattern with *); none",
        changeable=True,
    )
    tr_lr_find: bool = option(
        False,
        "1: before the training try rising learning rates; picture (lr_find.svg), table and a suggestion, then train "
        "with --optim_lr from the same weights. A resumed run doesn't look again",
    )
    tr_batch_find: bool = option(
        False,
        "1: before the training tell the largest batch (a power of two) that fits on the GPU; a resumed run doesn't "
        "look again",
    )
    tr_overfit: int = option(
        0,
        "sanity check: train and validate on the images of so many batches, without augmentation; the loss must "
        "approach 0. 0: off",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training."""

    tr_use_amp: bool = option(False, "1: automatic mixed precision")
    tr_amp_dtype: str = option(
        "auto",
        "its type; auto: bfloat16 where the device has it, else float16; float16 needs a GPU",
        choices=("auto", "bfloat16", "float16"),
    )
    tr_tf32: bool = option(False, "1: float32 products in TF32, on a GPU that has it: quicker, 10 bits of precision")
    tr_deterministic: bool = option(
        False, "1: only kernels that give the same result each time; an operation that has none is an error"
    )
    tr_channels_last: bool = option(False, "1: pictures and kernels in memory channel by channel within a pixel")
    tr_compute: str = option(
        "given",
        "given: as --tr_use_amp, --tr_amp_dtype and --tr_channels_last say; auto: without a GPU a new run measures at "
        "its start which of them are quickest, and config.yaml has what it found; a resumed run doesn't measure again",
        choices=("given", AUTO),
    )
    tr_compile: str = option(
        "none",
        "compile the model by torch.compile in this mode",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
    )
    tr_sync_bn: bool = option(False, "1: batch norms over the images of all processes (several GPUs)")
    tr_grad_checkpoint: bool = option(
        False,
        "1: compute activations again in the backward pass instead of keeping them: less memory, a third more time; "
        "running statistics of batch norms are then updated twice",
    )
    tr_report: bool = option(
        True,
        "1: write report.html into the experiment's folder and the leaderboard beside it when the run ends, however it "
        "ends",
        changeable=True,
    )
    tr_profile: int = option(
        0,
        "iterations to trace after 3 others: profile.json for a trace viewer and a table in the log; 0: none",
        minimum=0,
        maximum=1000,
        changeable=True,
    )
    tr_clip_norm: float = option(
        0.0, "largest norm of all gradients together; above it they are scaled down; 0: any", minimum=0
    )
    tr_nonfinite: str = option(
        "stop",
        "at a loss or gradient that is not finite: stop: end the run and name iteration and images; skip: leave the "
        "update out",
        choices=("stop", "skip"),
        changeable=True,
    )
    tr_nonfinite_limit: int = option(
        10, "skipped updates of --tr_nonfinite=skip after which the run ends", minimum=0, changeable=True
    )
    tr_iteration_num: int = option(400, "iterations (batches) to train", minimum=1, changeable=True)
    tr_batch_size: int = option(16, "images in a batch", minimum=1)
    tr_accumulation_step: int = option(1, "iterations whose gradients make one optimizer step", minimum=1)
    tr_iteration_valid: int = option(
        200,
        "iterations between validations, a multiple of --tr_accumulation_step; the last iteration always validates",
        minimum=1,
    )
    tr_iteration_log: int = option(10, "iterations between two logged training losses", minimum=1, changeable=True)
    tr_checkpoint_minutes: float = option(
        10.0,
        "minutes after which last.pt is written between validations too, at an optimizer step; 0: at validations only",
        minimum=0,
        changeable=True,
    )
    tr_resume: str | None = option(
        None, "go on with an interrupted experiment, in its folder: its id, or the path of its last.pt", changeable=True
    )
    tr_resume_change: tuple[str, ...] = option(
        (),
        "options (names with commas) that may differ from the resumed run's although they change its result",
        parse=parse_names,
        form=",".join,
        changeable=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """Trackers."""

    trackers: tuple[str, ...] = option(
        (),
        "where metrics go beside metrics.jsonl, several with commas: neptune, trackio, tensorboard, mlflow",
        parse=parse_names,
        form=",".join,
        changeable=True,
    )
    nml_enabled: bool = option(False, "1: neptune is among the trackers", changeable=True)
    nml_project: str | None = option(
        None, "project on a Neptune server, as in workspace/name; none: NEPTUNE_PROJECT", changeable=True
    )
    nml_mode: str = option(
        "auto",
        "offline: files in the experiment's folder; async: the server that NEPTUNE_API_TOKEN names, or files where it "
        "doesn't answer; auto: async where there is such a token",
        choices=("auto", "offline", "async"),
        changeable=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    TrackerOptions,
    WatchOptions,
    AveragingOptions,
    LossOptions,
    TrainingOptions,
    ScheduleOptions,
    OptimizerOptions,
    StudyOptions,
    SequenceOptions,
    NetworkOptions,
    SamplerOptions,
    DataOptions,
    ExperimentOptions,
):
    """Train one experiment: a model for the six labels of the RSNA 2019 task, into <output_dir>/<experiment_id>."""

    def __post_init__(self) -> None:
        if self.tr_iteration_valid % self.tr_accumulation_step:
            works = max(self.tr_iteration_valid // self.tr_accumulation_step, 1) * self.tr_accumulation_step
            raise UsageError(
                f"--tr_iteration_valid={self.tr_iteration_valid} is not a multiple of "
                f"--tr_accumulation_step={self.tr_accumulation_step}: checkpoints must stand at an optimizer step; "
                f"--tr_iteration_valid={works} works"
            )
        if self.tr_early_stop_delta is not None and not self.tr_early_stop:
            raise UsageError("--tr_early_stop_delta needs --tr_early_stop")
        if not self.is_cross_validation and self.cv_run is not None and self.tr_resume is None:
            raise UsageError("--cv_run needs a cross-validation: --data_fold=all or several folds")
        if self.is_cross_validation and self.tr_overfit:
            raise UsageError("--tr_overfit validates on what it trains on, which is no cross-validation; name one fold")
        if self.is_cross_validation and self.tr_compute == AUTO:
            raise UsageError(
                "--tr_compute=auto measures for each run, so that folds could differ; train one fold with it, and give "
                "the cross-validation what its config.yaml has"
            )
        if self.tr_resume is None:
            refuse_given(self, ("tr_resume_change",), "needs --tr_resume, the experiment to go on with")
        self._check_kind()

    def _check_kind(self) -> None:
        """Refuse options that mean nothing to the kind of network."""
        groups: tuple[type, ...] = (SequenceOptions, StudyOptions)
        names = set()
        if self.net_kind == SEQUENCE:
            groups = (DataOptions, SamplerOptions, NetworkOptions, StudyOptions)
        elif self.net_kind == STUDY:
            groups, names = (SamplerOptions,), {"seq_features"}
        if self.net_kind in (SEQUENCE, STUDY):
            names |= {"tr_channels_last", "tr_compute", "tr_compile", "tr_grad_checkpoint", "tr_sync_bn", "tr_overfit"}
        names |= {name for group in groups for name in group.__dataclass_fields__} - OF_ANY_KIND
        meaningless = [name for name in self.__dataclass_fields__ if name in names]
        refuse_given(self, meaningless, f"means nothing to --net_kind={self.net_kind}; leave it out")
        if self.net_kind == SEQUENCE and self.seq_features is None:
            raise UsageError("--net_kind=sequence needs --seq_features, the experiment of a cross-validation")
        if self.net_kind == STUDY and self.net_weight_file is None and not self.net_pretrained:
            raise UsageError(
                "--net_kind=study starts from a slice network: --net_weight_file=<best.pt of the same fold>, or "
                "--net_pretrained=1"
            )

    @property
    def is_cross_validation(self) -> bool:
        """Whether several folds are trained, each in a run of its own."""
        return isinstance(self.data_fold, tuple)


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(ConsoleOptions):
    """Where to run."""

    n_jobs: int | None = option(
        None, "CPU cores to use; 0: all there are; none: as the training", minimum=0, maximum=4096
    )
    data_input_folder: Path | None = option(
        None,
        "folder that holds datasets/; none: the one of the training, or input where no weight file is asked",
    )
    seq_features: str | None = option(
        None, "sequence models: experiment (id or folder) that has the features; none: the one of the training"
    )
    net_weights: str = option(
        "best",
        "which of the file's weights: raw (as trained), ema or swa (their averages); best: which validated best",
        choices=("best", "raw", "ema", "swa"),
    )


@dataclass(frozen=True, kw_only=True)
class ReportConfig(ResultsLocation):
    """Write the leaderboard of all experiments, and the report of those that are named."""

    experiment_id: tuple[str, ...] = option(
        (),
        "experiments whose report.html is written anew, as in 1,2; none: the leaderboard alone",
        parse=parse_names,
        form=",".join,
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ResultsLocation):
    """Run several experiments in turn, or one on each GPU. A failed one stops no other."""

    lines: Path | None = option(None, "text file: an experiment on each line, flags of train.py; # begins a comment")
    grid: Path | None = option(
        None, "YAML file: every combination of {grid: {option: [values]}} with the options {base: {option: value}}"
    )
    space: Path | None = option(
        None,
        "YAML file: search {space: {option: [choices] or {low:, high:, log:, step:}}} with {base: {option: value}} by "
        "Optuna; any number of processes started with the same file share the search",
    )
    trials: int = option(20, "trials of --space that end it, all processes together", minimum=1)
    seed: int = option(0, "seed of the search", minimum=0, maximum=2**31 - 1)
    data_dataset: str | None = option(None, "dataset of experiments that name none; none: train.py's own default")
    flags: str = option(
        "", "flags of train.py for every experiment of --lines or --grid, quoted as one: '--seed=1 ...'"
    )
    parallel: int = option(0, "experiments at once; 0: one on each GPU, or one where there is none", minimum=0)
    evaluate: bool = option(
        True, "1: evaluate each experiment and predict the test images; 0: train only, as the trials of --space"
    )
    dry_run: bool = option(False, "1: say what would run, and run nothing")

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.lines, self.grid, self.space)) != 1:
            raise UsageError("give one of --lines, --grid and --space")
        if self.space is None:
            refuse_given(self, ("trials", "seed"), "needs --space, a search")
            return
        refuse_given(self, ("flags",), "doesn't go with --space, whose base has the options of every trial")
        refuse_given(
            self,
            ("parallel", "evaluate", "dry_run"),
            "doesn't go with --space: its trials are only trained, one after the other in each process, and depend on "
            "those before",
        )


@dataclass(frozen=True, kw_only=True)
class TTAOptions:
    """Test-time augmentation."""

    tta: str | None = option(
        None,
        "transform file of which --tta_views views are averaged, the same for every image and model; a bare name is "
        "looked up in transforms/; none: no",
    )
    tta_views: int = option(4, "number of views of --tta", minimum=1, maximum=1000)
    tta_mean: str = option(
        "mean",
        "mean of the views' probabilities; logit: mean of their logits (probabilities clipped to 1e-7 from 0 and 1)",
        choices=("mean", "logit"),
    )

    def __post_init__(self) -> None:
        if self.tta is None:
            refuse_given(self, ("tta_views", "tta_mean"), "needs --tta, the file of the views")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How much is predicted at a time."""

    batch_size: int | None = option(
        None, "images (or series) in a batch; lower it where memory runs out; none: as the training", minimum=1
    )


OF_AUDITS = {"audit", "audit_sample", "audit_fill", "output_file", "data_input_folder", "data_dataset", "verbosity"}


@dataclass(frozen=True, kw_only=True)
class PredictConfig(TTAOptions, BatchOptions, TrainedOptions, PseudonymOptions):
    """Predict a dataset's split, or the studies of any DICOM files (--source), or audit a submission (--audit).

    Model, transforms and image settings come from the weight file. Not a medical device; not for diagnosis.
    """

    net_weight_file: Path | None = option(
        None,
        "best.pt or last.pt of an experiment, its folder (best.pt), or the folder of a cross-validation (the mean of "
        "its folds' models); all but --audit need it",
        parse=parse_weight_file,
        metavar="PATH",
    )
    features: bool = option(
        False,
        "1: of a cross-validation's folder write what the models' heads see of each image: features/train, each image "
        "by the model that did not see it, and features/test, the mean of all; for --net_kind=sequence",
    )
    feature_refit: Path | None = option(
        None,
        "with --features=1, and with --sequence: one network (best.pt, or its experiment's folder) that was trained on "
        "the images of all folds (--data_fold=holdout), which sees new images in place of the mean of the folds' "
        "models; none: the mean",
    )
    source: Path | None = option(
        None,
        "folder, archive or single file of DICOM files, of any origin, to predict instead of a dataset: tables "
        "of slices and studies, JSON and a picture of each series, to --predict_output; names by --pseudonym_key, or "
        "pseudonyms.key in the training's input folder; none: a dataset",
    )
    predict_output: Path | None = option(None, "new folder for what --source gives")
    net_compute: str = option(
        TRAINING,
        "without a GPU, how slice networks compute: training: as they were trained; float32; channels_last: float32 in "
        "another layout of the memory; bfloat16: in this layout and 8 bits of precision, but for first and last layer; "
        "auto: what measures quickest at the start",
        choices=(TRAINING, *WAYS, AUTO),
    )
    sequence: Path | None = option(
        None,
        "sequence model for --source, on the features of the cross-validation that --net_weight_file names: its "
        "best.pt, its experiment's folder, or a cross-validation's (the mean of its models); --net_weights then "
        "chooses its weights; none: no",
    )
    calibrate: bool = option(
        False,
        "1: probabilities by the temperatures of calibration.json, which evaluate.py fits, beside the weights (of "
        "--sequence beside its weights)",
    )
    split: str = option(
        "test",
        "test: submission.csv (predictions_test.csv where the data is not the competition's); train, valid: "
        "predictions_<split>.csv of the images of that part of the fold; holdout: of those that --pre_holdout kept out "
        "of all folds",
        choices=("train", "valid", "test", "holdout"),
    )
    data_dataset: str | None = option(
        None,
        "dataset to predict; none: the one of the training. For --audit the one with the sample submission; none: rsna",
    )
    output_file: Path | None = option(None, "file to write; none: beside the weights, or beside the audited file")
    audit: Path | None = option(
        None,
        "submission to audit instead of predicting: rows, duplicates, range, consistency of labels, distribution; exit "
        "code 1 where it is not valid",
    )
    audit_sample: Path | None = option(
        None, "sample submission that says which rows --audit expects; none: the dataset's, where it has one"
    )
    audit_fill: str | None = option(
        None,
        "write the audited submission, in the sample's order, with a value for rows that are missing: half: 0.5; "
        "prevalence: the label's; none: no",
        choices=("half", "prevalence"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.audit is None and (self.audit_sample is not None or self.audit_fill is not None):
            raise UsageError("--audit_sample and --audit_fill need --audit, the submission to look at")
        if self.audit is not None:
            predicting = [name for name in self.__dataclass_fields__ if name not in OF_AUDITS]
            refuse_given(self, predicting, "doesn't go with --audit, which predicts nothing; leave it out")
            if self.output_file is not None and self.audit_fill is None:
                raise UsageError("--output_file needs --audit_fill here: an audit alone writes nothing")
            if self.output_file is not None and self.output_file.resolve() == self.audit.resolve():
                raise UsageError(f"--output_file={self.output_file} is the file to audit; give another name")
            return
        if self.net_weight_file is None:
            raise UsageError("--net_weight_file is missing: best.pt or last.pt of an experiment")
        if (self.source is None) != (self.predict_output is None):
            raise UsageError("--source and --predict_output (a new folder) belong together")
        if self.pseudonym_key is not None and self.source is None:
            raise UsageError("--pseudonym_key needs --source: a dataset has its pseudonyms already")
        if self.sequence is not None and self.source is None:
            raise UsageError(
                "--sequence needs --source; a dataset's split is predicted by the sequence model's own file as "
                "--net_weight_file"
            )
        if self.source is not None:
            self.refuse_without_dataset("split", "output_file", "seq_features")
        if self.output_file is not None and self.output_file.resolve() == self.net_weight_file.resolve():
            raise UsageError(f"--output_file={self.output_file} is the weight file; give another name")
        if self.sequence is not None and self.tta is not None:
            raise UsageError("--sequence doesn't go with --tta: the features that it learnt from are of single views")
        if self.feature_refit is not None and not self.features and self.sequence is None:
            raise UsageError("--feature_refit needs --features=1, or --sequence")
        if self.features and (self.tta is not None or self.calibrate or self.source or self.output_file):
            raise UsageError("--features=1 goes with none of --tta, --calibrate, --source and --output_file")
        if self.features and self.data_dataset is not None:
            raise UsageError("--features=1: features are of the cross-validation's dataset; leave out --data_dataset")
        if self.features:
            refuse_given(
                self, ("net_compute",), "doesn't go with --features=1: its networks compute as they were trained"
            )
            refuse_given(
                self,
                ("split", "seq_features"),
                "doesn't go with --features=1, which sees the pictures of all folds and of the test; leave it out",
            )
        if self.calibrate and self.tta is not None:
            raise UsageError("--calibrate=1 doesn't go with --tta: the temperatures were fitted to predictions without")

    def refuse_without_dataset(self, *names: str) -> None:
        """Raise UsageError for an option of a dataset beside --source."""
        refuse_given(self, names, "doesn't go with --source, which is no dataset; leave it out")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(TrainedOptions):
    """Export a trained network for other programs: windowed, normalized pictures in, six logits out.

    Of a sequence model: features, logits and places of whole series in, logits of slices and study out; of a network
    over whole series: pictures and places in, the same out. The file is run on data of the dataset and must give what
    torch gives. Not a medical device; not for diagnosis.
    """

    net_weight_file: Path = option(
        REQUIRED,
        "best.pt or last.pt of an experiment, or its folder (best.pt)",
        parse=parse_weight_file,
        metavar="PATH",
    )
    export_format: str = option(
        "onnx",
        "onnx: for ONNX Runtime and others (pip install onnx onnxscript onnxruntime); torch_export: for "
        "torch.export.load; checkpoint: for this program elsewhere, the weights without a run's state",
        choices=("onnx", "torch_export", CHECKPOINT),
    )
    export_file: Path | None = option(
        None, "file to write; none: beside the weights, as best.onnx, best.pt2 or best_shared.pt"
    )
    lineage: bool = option(
        True,
        "1: the file holds hashes of the pictures and pseudonyms that the network learnt from, so that nobody judges "
        "it by these; whoever has it and a scan can tell whether the scan was trained on. 0: it doesn't",
    )
    data_dataset: str | None = option(
        None, "dataset whose images the file is checked on; none: the one of the training"
    )

    def __post_init__(self) -> None:
        if self.export_file is not None and self.export_file.resolve() == self.net_weight_file.resolve():
            raise UsageError(f"--export_file={self.export_file} is the weight file; give another name")
        if self.export_format == CHECKPOINT:
            unused = ("n_jobs", "data_input_folder", "data_dataset", "seq_features", "net_weights")
            refuse_given(
                self, unused, "means nothing to --export_format=checkpoint, which holds all weights as they are"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TTAOptions, BatchOptions, ResultsLocation, TrainedOptions):
    """Evaluate an experiment on its validation fold, or any predictions, beside the constant predictor.

    Every metric has a 95 % interval over patients. With --tta also with test-time augmentation, and what it changes.
    """

    experiment_id: str | None = option(None, "experiment to evaluate: its number or name")
    eval_file: Path | None = option(
        None,
        "CSV of predictions to evaluate instead of an experiment (a submission's form, or id and a column for each "
        "label), by the labels of --data_dataset",
    )
    data_dataset: str | None = option(
        None,
        "dataset: all its labelled images of patients that the model was not trained on are evaluated instead of the "
        "validation fold (external validation), or with --eval_file those that the file predicts; none: the validation "
        "fold of the training",
    )
    eval_compare: str | None = option(
        None, "experiment, or CSV of predictions, of the same images: paired differences from it, with intervals"
    )
    eval_truth: Path | None = option(
        None,
        "a phantom's phantom_truth.csv, for strata by blood volume, look-alikes and the file's form; none: the one in "
        "<data_input_folder>/phantom, where the dataset was made from it",
    )
    eval_draws: int = option(DRAWS, "bootstrap draws of patients", minimum=100, maximum=100_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.experiment_id is None) == (self.eval_file is None):
            raise UsageError("give either --experiment_id or --eval_file")
        if self.eval_file is not None and self.data_dataset is None:
            raise UsageError("--eval_file needs --data_dataset, whose metadata.csv has the labels")
        if self.eval_file is not None:
            self.refuse_network_options("needs --experiment_id: predictions in a file come from no network here")

    def refuse_network_options(self, why: str) -> None:
        """Raise UsageError for an option of a network, where none predicts."""
        refuse_given(self, ("tta", "batch_size", "net_weights", "seq_features"), why)


def parse_weights(text: str) -> tuple[float, ...]:
    """Read ``1,2,0.5``; ValueError as :func:`parse_numbers`, and where all are 0."""
    weights = parse_numbers(text)
    if sum(weights) == 0:
        raise ValueError(f"{text!r}: weights must not all be 0")
    return weights


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig(ResultsLocation):
    """Average predictions of several models, aligned by ID; fit the weights and score them where labels are known."""

    members: tuple[str, ...] = option(
        REQUIRED,
        "experiments (number or name), of which predictions_oof.csv or else predictions_valid.csv is taken and "
        "submission.csv where all have one; or CSV files of the same rows: submissions (ID,Label) or id and a column "
        "for each label",
        positional=True,
    )
    experiment_id: str | None = option(
        None, "name of the ensemble, which is an experiment of its own, and its folder; none: the next free number"
    )
    weights: tuple[float, ...] | None = option(
        None,
        "a weight for each member, as in 1,2; divided by their sum; none: all the same",
        parse=parse_weights,
        form=format_numbers,
    )
    ens_method: str = option(
        "mean",
        "mean of the probabilities; logit: mean of their logits (clipped to 1e-7 from 0 and 1); power: power mean by "
        "--ens_power; rank: mean of the ranks within a label, scaled to (0, 1], which are not calibrated probabilities "
        "and score badly in log loss",
        choices=("mean", "logit", "power", "rank"),
    )
    ens_power: float | None = option(
        None,
        "exponent of --ens_method=power: 1 is the mean, a larger one leans to the highest",
        minimum=0.01,
        maximum=100,
    )
    ens_fit: str = option(
        "none",
        "fit the weights to the labels: weights: those with the lowest loss; greedy: greedy selection with "
        "replacement. The score told is that of other patients than those fitted to (5 outer folds over patients). "
        "Members must be predictions of images that their models were not trained on",
        choices=("none", "weights", "greedy"),
    )
    ens_calibrate: str = option(
        "none",
        "map the ensemble's probabilities of each label so that a 0.3 comes true three times in ten: temperature, or "
        "isotonic, which needs many images. What is submitted is what it is fitted to: of members that are "
        "cross-validations the mean of their models, by the images that --pre_holdout kept out of all folds "
        "(predict.py --split=holdout). The score told is that of other patients than those fitted to. One member alone "
        "will do",
        choices=("none", "temperature", "isotonic"),
    )
    ens_labels: Path | None = option(
        None,
        "labels to score against: a dataset's fold CSV or metadata.csv, or the competition's train CSV (which names no "
        "patients); none: of experiments those of the dataset, of files no",
    )
    ens_draws: int = option(DRAWS, "bootstrap draws of patients", minimum=100, maximum=100_000)
    ens_output: Path | None = option(
        None,
        "write the predictions to this file alone (an older one is replaced) and make no experiment; a submission "
        "where all members are submissions",
    )

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.members):
            raise UsageError(
                f"--weights has {len(self.weights)} numbers for {len(self.members)} members; give one for each"
            )
        if self.weights is not None and self.ens_fit != "none":
            raise UsageError(f"--weights are given, so that --ens_fit={self.ens_fit} has nothing to fit")
        if self.ens_fit != "none" and self.ens_method == "rank":
            raise UsageError(f"--ens_fit={self.ens_fit} needs probabilities, and --ens_method=rank gives none")
        if (self.ens_method == "power") != (self.ens_power is not None):
            raise UsageError("--ens_method=power and --ens_power=3 (or another exponent) belong together")
        if self.ens_output is not None and self.experiment_id is not None:
            raise UsageError("give either --experiment_id or --ens_output, which makes no experiment")
        resolved = [Path(member).resolve() for member in self.members]
        for position, member in enumerate(self.members):
            if resolved[position] in resolved[:position]:
                raise UsageError(f"{member} is given twice; use --weights to let a member count more")
        if self.ens_output is not None and self.ens_output.resolve() in resolved:
            raise UsageError(f"--ens_output={self.ens_output} is one of the files to read; give another name")


@dataclass(frozen=True, kw_only=True)
class SecondLevelConfig(ResultsLocation):
    """Learn from out-of-fold predictions of a slice and its neighbours: gradient-boosted trees, one model a label."""

    members: tuple[str, ...] = option(
        REQUIRED, "finished cross-validations (train.py --data_fold=all) over the same folds", positional=True
    )
    experiment_id: str | None = option(
        None, "name of the result, which is an experiment of its own, and its folder; none: the next free number"
    )
    seed: int = option(0, "seed of the trees", minimum=0, maximum=2**31 - 1)
    level_neighbours: int = option(
        2, "slices on each side along the series whose predictions count", minimum=0, maximum=100
    )
    level_trees: int = option(
        100,
        "most trees of each label's model; how many, or none, is chosen by cross-validation over the patients",
        minimum=1,
    )
    level_rate: float = option(0.05, "learning rate: how much each tree counts", minimum=0.0001, maximum=1)
    level_leaves: int = option(15, "most leaves of a tree", minimum=2)
    level_leaf_images: int = option(20, "fewest images in a leaf", minimum=1)
    level_l2: float = option(1.0, "L2 penalty of the leaves' values", minimum=0)
    level_draws: int = option(DRAWS, "bootstrap draws of patients", minimum=100, maximum=100_000)

    def __post_init__(self) -> None:
        twice = [name for place, name in enumerate(self.members) if name in self.members[:place]]
        if twice:
            raise UsageError(f"{twice[0]} is given twice")


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig(GeneralOptions, DataLocation, PseudonymOptions):
    """Convert DICOM files to a dataset: images, tables and folds, in <data_input_folder>/datasets."""

    pre_source: Path | None = option(
        None,
        "DICOM files, in the competition's form or any other, also packed by gzip (.dcm.gz): a folder with the zip and "
        "tar archives in it; such an archive, read in place; or a single file; none: the competition's, in "
        "<data_input_folder>",
    )
    pre_labels: Path | None = option(
        None,
        "CSV of labels: a column path, SOPInstanceUID or StudyInstanceUID and one for each label, or ID,Label with "
        "such a key in the ID; none: the competition's own, or unlabelled",
    )
    pre_max_failed: float = option(
        0.01,
        "largest accepted share of failed files; above it everything is still written, with exit code 1. Files that "
        "are no CT slices (reports, localizers, dose pages, maps, text files, ...) never count",
        minimum=0,
        maximum=1,
    )
    pre_folds: int = option(
        5,
        "folds for cross-validation; 1: no more than a split, which validates on --pre_holdout",
        minimum=1,
        maximum=1000,
    )
    pre_holdout: float = option(
        0.0, "share of the labelled images, by whole patients, that are held out of all folds", minimum=0, maximum=0.9
    )
    pre_group: str = option(
        "patient",
        "what stays together in folds and intervals: patient: all studies of a PatientID; study: each study counts as "
        "a patient, for archives that give all their patients the same PatientID. Either way images of one study, and "
        "patients with a picture in common, stay together",
        choices=("patient", "study"),
    )
    pre_size: int = option(
        0, "pixels of the longer side (area rule, padded to a square with air); 0: as stored", minimum=0, maximum=4096
    )
    pre_window: Windows | None = option(
        None,
        "store windows (centre/width in HU, as in 40/80,80/200), a channel each, and not Hounsfield units; none: HU",
        parse=parse_windows,
        form=format_windows,
    )
    pre_type: str = option(
        "auto",
        "type of the stored pixels: float32 (0..1) or uint8 (0..255) for --pre_window; auto: float32, int16 for HU",
        choices=("auto", "float32", "uint8"),
    )
    pre_crop: str = option(
        "none",
        "head: keep the head's box only, with air in place of table and holder; the boxes stand in metadata.csv "
        "and crop_sheet.png shows some",
        choices=("none", "head"),
    )
    pre_format: str = option(
        "npy",
        "image files: npy: plain numpy arrays; blosc2: losslessly compressed .b2nd arrays, about a third of the size",
        choices=("npy", "blosc2"),
    )
    check: bool = option(
        False,
        "1: write nothing; read some hundred files and the labels, and tell in seconds what the source holds, what the "
        "labels fit, which folds are possible, and what time and disk a dataset takes",
    )
    pre_verify: bool = option(
        False, "1: convert nothing; read a finished dataset's images again: all there, right shape, right hash"
    )
    pre_audit: bool = option(
        False,
        "1: also write audit.html beside the dataset: what is in it, and what to look at before training; a finished "
        "dataset is left as it is unless a source or other options are given",
    )
    pre_scheduler: str = option(
        "local",
        "who converts: local: processes of this machine; dask: workers of a dask cluster (pip install distributed)",
        choices=("local", "dask"),
    )
    pre_dask_address: str | None = option(
        None,
        "scheduler of a running dask cluster that sees the same folders, as in tcp://10.0.0.1:8786; none: a cluster of "
        "--n_jobs workers on this machine",
    )
    seed: int = option(0, "seed of the folds", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        for name in ("pre_verify", "pre_audit") if self.check else ():
            if getattr(self, name):
                raise UsageError(f"--{name}=1 doesn't go with --check=1, which makes no dataset; leave one of them out")
        if self.check and self.pre_scheduler != "local":
            raise UsageError(f"--pre_scheduler={self.pre_scheduler} doesn't go with --check=1, which reads here")
        if self.pre_verify and self.pseudonym_key is not None:
            raise UsageError("--pseudonym_key doesn't go with --pre_verify=1, which converts nothing; leave it out")
        if self.pre_folds == 1 and self.pre_holdout == 0:
            raise UsageError("--pre_folds=1 needs --pre_holdout, the share of images to validate on, as in 0.2")
        if self.pre_type != "auto" and self.pre_window is None:
            raise UsageError(f"--pre_type={self.pre_type} needs --pre_window: Hounsfield units are stored as int16")
        if self.pre_dask_address is not None and self.pre_scheduler != "dask":
            raise UsageError(f"--pre_dask_address={self.pre_dask_address} needs --pre_scheduler=dask")


@dataclass(frozen=True, kw_only=True)
class PhantomConfig(GeneralOptions):
    """Write a phantom: synthetic head CT with bleeding, in the files and formats of the RSNA 2019 competition."""

    phantom_folder: Path = option(Path("./input/phantom"), "folder to write; an older phantom in it is replaced")
    phantom_studies: int = option(
        100, "studies to write, train and test together; at least 9 train ones", minimum=1, maximum=10**6
    )
    phantom_test_share: float | None = option(
        None, "share of the studies that are test studies; none: the data's, about 0.14", minimum=0.001, maximum=0.9
    )
    phantom_slices: int = option(
        0, "slices of every study, 2 or more; 0: spread as in the data (median 33, at most 60)", minimum=0, maximum=60
    )
    phantom_image_size: int = option(512, "rows and columns of an image, in pixels", minimum=32, maximum=1024)
    phantom_difficulty: str = option(
        "real",
        "demo: more, larger and denser bleedings, learnt within minutes; real: near the data's prevalences and sizes",
        choices=("demo", "real"),
    )
    phantom_contact_sheet: Path | None = option(
        None, "PNG file for a sheet of studies x slices with their labels in the brain window; none: no sheet"
    )
    phantom_only_if_missing: bool = option(
        False, "1: write nothing where a complete phantom of the same options already stands"
    )
    seed: int = option(0, "seed of everything: the same seed gives the same bytes", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        if self.phantom_slices == 1:
            raise UsageError("--phantom_slices=1: give 2 or more, since one of the studies repeats a slice's position")
