"""The options of train.py, and the groups that it shares with other commands.

One field is an option's type, its only default, its help and its range. ``common.cli.arguments.parse_args`` builds a
configuration. The classes it inherits from are the groups that ``--help`` shows. Groups stand beside what they
configure: those of the optimizer in ``common/training/optimizers.py``, those of predict.py in
``rsna/prediction/options.py``. Choices are the rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.cli.arguments import option, refuse_given
from common.cli.choices import choose, summaries
from common.cli.listing import TABLES
from common.cli.values import (
    Windows,
    format_folds,
    format_windows,
    parse_folds,
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
    "sweep": "rsna.training.options.SweepConfig",
    "report": "rsna.judging.options.ReportConfig",
    "export": "rsna.prediction.options.ExportConfig",
    "rsna_phantom": "rsna.phantom.options.PhantomConfig",
}


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
class NetworkOptions:
    """Network."""

    net_kind: str = option(
        "slice",
        summaries(KINDS),
        choices=tuple(KINDS),
        own_rows=True,
    )
    net_model: str = option(
        "resnet10t", "name of a timm model, or the path of your own; the default is small enough for a laptop"
    )
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
    net_pool: str | None = option(None, "global pooling; none: the model's own", choices=tuple(POOLS))
    net_freeze: str = option(
        "none", "what is not trained: norms, backbone (all but the head), or how many layers from the stem on; none"
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
        f"print what there is, and end: {', '.join(TABLES)}, transform, or model[:pattern] (a part of the name or a "
        "pattern with *); none",
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
    tr_callbacks: tuple[str, ...] = option(
        (),
        "callbacks of your own, several with commas: paths of their rows, as in examples.callback.WEIGHT_NORMS",
        parse=parse_names,
        form=",".join,
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
        f"where metrics go beside metrics.jsonl, several with commas: {', '.join(TRACKERS)}",
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
        choose("net_kind", self.net_kind, KINDS).check(self)

    @property
    def is_cross_validation(self) -> bool:
        """Whether several folds are trained, each in a run of its own."""
        return isinstance(self.data_fold, tuple)
