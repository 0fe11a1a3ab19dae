"""The options of train.py.

Each field of a dataclass is one option: its type, its only default, its help and its range.
``common.cli.arguments.parse_args`` builds a configuration from the command line. ``--help`` shows each class that a
configuration inherits from as a group of options. A group stands beside the code that it configures: the optimizer's in
``common/training/optimizers.py``, those of predict.py in ``rsna/prediction/options.py``, and groups of most commands
in ``common/cli/groups.py``. Choices are the rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option, refuse_given
from common.cli.choices import choose, summaries
from common.cli.groups import DataLocation, GeneralOptions, ResultsLocation
from common.cli.listing import TABLES
from common.cli.values import (
    Windows,
    format_folds,
    format_windows,
    parse_folds,
    parse_hours,
    parse_names,
    parse_weight_file,
    parse_windows,
)
from common.datasets.sampling import SamplerOptions
from common.errors import UsageError
from common.models.pooling import POOLS
from common.models.sequence import SequenceOptions
from common.networks.averaging import AveragingOptions
from common.trackers.table import TRACKERS
from common.training.losses import LossOptions
from common.training.optimizers import OptimizerOptions
from common.training.schedulers import ScheduleOptions
from common.training.ways import AUTO
from rsna.kinds.table import KINDS, StudyOptions

# The configuration of each command; a new command is one more row.
COMMANDS = {
    "preprocessing": "rsna.prepare.options.PreprocessingConfig",
    "train": "config.TrainConfig",
    "evaluate": "rsna.judging.options.EvaluateConfig",
    "predict": "rsna.prediction.options.PredictConfig",
    "ensemble": "rsna.judging.options.EnsembleConfig",
    "second_level": "rsna.judging.options.SecondLevelConfig",
    "plan": "rsna.training.options.PlanConfig",
    "sweep": "rsna.training.options.SweepConfig",
    "report": "rsna.judging.options.ReportConfig",
    "export": "rsna.prediction.options.ExportConfig",
    "rsna_phantom": "rsna.phantom.options.PhantomConfig",
}


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(ResultsLocation, GeneralOptions):
    """Experiment."""

    experiment_id: str | None = option(
        None, "name of the experiment and of its folder; none: the next free number", changeable=True
    )
    seed: int = option(
        0, "seed of the initial weights, the order of images and the augmentation", minimum=0, maximum=2**31 - 1
    )
    dev_enabled: bool = option(
        False, "1: rehearse on a small part of the data; the log goes to the console, and nothing to trackers"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(DataLocation):
    """Data."""

    data_fold: int | str | tuple[int, ...] = option(
        0,
        "fold to validate on; the others train. all, or several as in 0,1,2: cross-validation, one run for each "
        "fold, all in one experiment. holdout: train on all folds and validate on the images that --pre_holdout "
        "kept out of them",
        parse=parse_folds,
        form=format_folds,
        metavar="N|N,N|all|holdout",
    )
    cv_run: int | None = option(
        None,
        "train only this fold of a cross-validation, as one job on a cluster. --experiment_id names the experiment,"
        " which the first job makes and the others join; the last job to finish combines the folds. none: train all"
        " folds here",
        minimum=0,
        changeable=True,
    )
    data_train_transform: str = option(
        "train_demo.json", "albumentations JSON file for training images; a bare name is looked up in transforms/"
    )
    data_valid_transform: str = option(
        "valid_demo.json",
        "albumentations JSON file for validation and test images; a bare name is looked up in transforms/",
    )
    data_transform_fuse: bool = option(
        False,
        "1: join all steps that move pixels to one warp. A picture is then interpolated only once: quicker and "
        "sharper, but different beyond its border. Holds for validation and --tta too",
    )
    data_transform_device: str = option(
        "auto",
        "where transforms run, with the same random draws. cpu: picture by picture, in the loading processes. cuda:"
        " whole batches on the GPU. auto: cuda if there is a GPU. A file with a step that can't run on batches "
        "stays on the CPU, and a message says so",
        choices=("auto", "cpu", "cuda"),
    )
    data_windows: Windows = option(
        parse_windows("40/80,80/200,40/380"),
        "windows (centre/width in HU), one for each channel; used unless the transform file has a DicomWindowShift",
        parse=parse_windows,
        form=format_windows,
    )
    data_image_size: int = option(
        96,
        "longer side of the picture in pixels, resized by area and padded with air to a square; 0: as stored",
        minimum=0,
        maximum=4096,
    )
    data_context: int = option(
        0,
        "number of neighbouring slices on each side, by position in the series, whose windows are added as channels"
        " (2.5-D): 1 with 3 windows gives 9 channels",
        minimum=0,
        maximum=10,
    )


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Network."""

    net_kind: str = option(
        "slice",
        summaries(KINDS),
        choices=tuple(KINDS),
        own_rows=True,
    )
    net_model: str = option(
        "resnet10t",
        "name of a timm model, or path of a model file of your own; the default is small enough for a laptop",
    )
    net_pretrained: bool = option(False, "1: start from timm's ImageNet weights (downloaded, or from the hub's cache)")
    net_weight_file: Path | None = option(
        None,
        "weights to start from: a best.pt of this project, a file of timm or torchvision, a state dict, or "
        "safetensors. The folder of an experiment stands for its best.pt; the folder of a cross-validation over the"
        " same folds gives each fold its own weights. Overrides --net_pretrained. none: no file",
        parse=parse_weight_file,
        metavar="PATH",
    )
    net_weight_adapt: bool = option(
        False,
        "1: adapt weights that were made for another number of classes or input channels, and print what was changed",
    )
    net_in_chans: int | None = option(
        None,
        "number of input channels that you expect; training is refused if the windows give another number. none: no"
        " check",
        minimum=1,
        changeable=True,
    )
    net_drop: float = option(0.0, "dropout rate before the head", minimum=0, maximum=0.99)
    net_drop_path: float = option(0.0, "stochastic depth: drop rate of the last block", minimum=0, maximum=0.99)
    net_pool: str | None = option(None, "global pooling; none: as in the model", choices=tuple(POOLS))
    net_head_init: str = option(
        "prevalence",
        "where a new head begins. prevalence: at the labels' shares among the training images, which the network then "
        "need not learn (biases at their logits, weights at 0). random: as timm makes it. A model of your own keeps "
        "its own start",
        choices=("prevalence", "random"),
    )
    net_freeze: str = option(
        "none",
        "what to keep from training: norms, backbone (all but the head), or a number of layers, counted from the "
        "stem; none: nothing",
    )


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Watching."""

    tr_early_stop: int = option(
        0, "stop after this many validations in a row without a better value; 0: never", minimum=0
    )
    tr_early_stop_delta: float | None = option(
        None, "how far a value must fall below the best to count as better; none: 0", minimum=0
    )
    list: str | None = option(
        None,
        f"print the choices of a kind and exit: {', '.join(TABLES)}, transform, or model[:pattern] (part of a name, or "
        "a pattern with *)",
        changeable=True,
    )
    tr_lr_find: bool = option(
        False,
        "1: before training, try rising learning rates and write lr_find.svg, a table and a suggestion. Training "
        "then starts from the same weights with --optim_lr. A resumed run doesn't search again",
    )
    tr_batch_find: bool = option(
        False,
        "1: before training, find the largest batch size (a power of two) that fits on the GPU, and print it. A "
        "resumed run doesn't search again",
    )
    tr_overfit: int = option(
        0,
        "sanity check: train and validate on the same few batches, this many, without augmentation; the loss must "
        "approach 0. 0: off",
        minimum=0,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Training."""

    tr_use_amp: bool = option(False, "1: train with automatic mixed precision")
    tr_amp_dtype: str = option(
        "auto",
        "number type of mixed precision. auto: bfloat16 if the device has it, else float16. float16 needs a GPU",
        choices=("auto", "bfloat16", "float16"),
    )
    tr_tf32: bool = option(
        False, "1: multiply float32 matrices in TF32 on a GPU that has it: quicker, with 10 bits of precision"
    )
    tr_deterministic: bool = option(
        False, "1: use only kernels that give the same result every time; an operation without one is an error"
    )
    tr_channels_last: bool = option(False, "1: store pictures and kernels in the channels_last memory format")
    tr_compute: str = option(
        "given",
        "given: as --tr_use_amp, --tr_amp_dtype and --tr_channels_last say. auto (CPU only): a new run measures "
        "which of them are quickest and records them in config.yaml; a resumed run doesn't measure again",
        choices=("given", AUTO),
    )
    tr_compile: str = option(
        "none",
        "mode of torch.compile; none: don't compile",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
    )
    tr_sync_bn: bool = option(False, "1: compute batch norms over the images of all processes (several GPUs)")
    tr_grad_checkpoint: bool = option(
        False,
        "1: recompute activations in the backward pass instead of keeping them. Needs less memory and a third more "
        "time, and updates the running statistics of batch norms twice",
    )
    tr_report: bool = option(
        True,
        "1: when the run ends, even by an error, write report.html into the experiment's folder and update the "
        "leaderboard beside it",
        changeable=True,
    )
    tr_profile: int = option(
        0,
        "number of iterations to profile, after 3 others: profile.json for a trace viewer, and a table in the log. "
        "0: none",
        minimum=0,
        maximum=1000,
        changeable=True,
    )
    tr_clip_norm: float = option(
        0.0, "largest norm of all gradients together; larger gradients are scaled down to it. 0: no limit", minimum=0
    )
    tr_nonfinite: str = option(
        "stop",
        "what to do when a loss or gradient is not finite. stop: end the run and name the iteration and its images."
        " skip: leave out this update",
        choices=("stop", "skip"),
        changeable=True,
    )
    tr_nonfinite_limit: int = option(
        10, "with --tr_nonfinite=skip: number of skipped updates that ends the run", minimum=0, changeable=True
    )
    tr_iteration_num: int = option(400, "number of iterations (batches) to train", minimum=1, changeable=True)
    tr_hours: float | None = option(
        None,
        "time that a new run may take, from its start to its report, in hours (0.5) or with a unit (30m, 90s). It "
        "measures its speed first; the iterations for which there is time replace --tr_iteration_num, also in "
        "config.yaml. Of a cross-validation: the time of all folds together. A resumed run keeps its iterations. none: "
        "train --tr_iteration_num",
        parse=parse_hours,
        metavar="HOURS",
        changeable=True,
    )
    tr_batch_size: int = option(16, "number of images in a batch", minimum=1)
    tr_accumulation_step: int = option(
        1, "number of iterations whose gradients are added up for one optimizer step", minimum=1
    )
    tr_iteration_valid: int = option(
        200,
        "number of iterations between validations, a multiple of --tr_accumulation_step; the last iteration always "
        "validates",
        minimum=1,
    )
    tr_iteration_log: int = option(
        10, "number of iterations between logged training losses", minimum=1, changeable=True
    )
    tr_checkpoint_minutes: float = option(
        10.0,
        "minutes after which last.pt is saved between validations too, at an optimizer step; 0: only at validations",
        minimum=0,
        changeable=True,
    )
    tr_callbacks: tuple[str, ...] = option(
        (),
        "callbacks of your own, separated by commas: the dotted paths of their rows, as in "
        "examples.callback.WEIGHT_NORMS",
        parse=parse_names,
        form=",".join,
        changeable=True,
    )
    tr_resume: str | None = option(
        None,
        "continue an interrupted experiment in its own folder: give its id or the path of its last.pt",
        changeable=True,
    )
    tr_resume_change: tuple[str, ...] = option(
        (),
        "names of options, separated by commas, that may differ from the resumed run's although they change its result",
        parse=parse_names,
        form=",".join,
        changeable=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrackerOptions:
    """Trackers."""

    trackers: tuple[str, ...] = option(
        (),
        f"where to send metrics besides metrics.jsonl, separated by commas: {', '.join(TRACKERS)}",
        parse=parse_names,
        form=",".join,
        changeable=True,
    )
    nml_enabled: bool = option(False, "1: add neptune to --trackers", changeable=True)
    nml_project: str | None = option(
        None, "Neptune project, as in workspace/name; none: the environment variable NEPTUNE_PROJECT", changeable=True
    )
    nml_mode: str = option(
        "auto",
        "offline: write files in the experiment's folder. async: send to the server that NEPTUNE_API_TOKEN names, "
        "and write files if it doesn't answer. auto: async if NEPTUNE_API_TOKEN is set, else offline",
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
    """Train a model for the six labels of the RSNA 2019 task; results go to <output_dir>/<experiment_id>."""

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
            if self.tr_hours is not None:
                why = "doesn't go with --tr_hours: "
                refuse_given(self, ("cv_run",), why + "jobs could measure differently; give all one --tr_iteration_num")
                refuse_given(self, ("tr_lr_find", "tr_batch_find"), why + "search first, then train by the hours")
        kind = choose("net_kind", self.net_kind, KINDS)
        kind.check(self)
        if self.optim_lr is None:  # a number from here on, also in config.yaml: a resumed run keeps it
            object.__setattr__(self, "optim_lr", kind.learning_rate(self))

    @property
    def is_cross_validation(self) -> bool:
        """Whether several folds are trained, each in a run of its own."""
        return isinstance(self.data_fold, tuple)
