"""The callbacks of a run, in the order of their calls. To add one, write a file and a row.

Your own row needs no edit here: name its path, as in ``--tr_callbacks=examples.callback.WEIGHT_NORMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.callbacks.callback import Callback
from common.callbacks.early_stopping import EarlyStopping
from common.callbacks.metric_logger import MetricLogger
from common.callbacks.model_checkpoint import ModelCheckpoint
from common.callbacks.profiler import Profiler
from common.callbacks.progress_bar import ProgressBar
from common.callbacks.sample_losses import SampleLosses
from common.callbacks.telemetry import Telemetry
from common.cli.arguments import to_dict
from common.cli.choices import Row, own_row, table
from common.errors import UsageError
from common.files import write_csv
from common.lineage import Lineage
from common.networks.network import Predictions
from common.trackers.tracker import Tracker
from common.training import distributed
from config import TrainConfig
from rsna.kinds.kind import TrainingData
from rsna.kinds.levels import study_frame
from rsna.training.outcome import VALID_FILE, studies_file
from rsna_dataset import LABEL_WEIGHTS, LABELS, dataset_folder, image_settings, read_dataset_info
from rsna_network import prediction_frame


@dataclass(frozen=True)
class Watched:
    """What callbacks are built from: the run's options, folder and data, and the loggers of its values.

    ``description``: what a checkpoint holds about the run besides weights and counters.
    """

    config: TrainConfig
    folder: Path
    data: TrainingData
    telemetry: Telemetry
    metric_logger: MetricLogger
    description: Mapping[str, Any]

    @property
    def monitor(self) -> str:
        """The key of the metric that chooses the weights."""
        return f"valid/{self.data.level.metric}"


@dataclass(frozen=True)
class CallbackRow(Row):
    """One callback: ``build`` makes it, and ``brought_by`` says whether a run's options ask for it.

    ``by_all``: every process of a distributed run has it, not only the main process.
    """

    build: Callable[[Watched], Callback] = field(kw_only=True)
    brought_by: Callable[[TrainConfig], bool] = field(default=lambda config: True, kw_only=True)
    by_all: bool = field(default=False, kw_only=True)


def build_early_stopping(run: Watched) -> Callback:
    """Build the callback that ends the run when the metric no longer falls."""
    return EarlyStopping(run.monitor, run.config.tr_early_stop, run.config.tr_early_stop_delta or 0.0)


def build_checkpoint(run: Watched) -> Callback:
    """Build the callback that writes checkpoints, and the predictions of the best weights."""

    def write_valid_predictions(predictions: Predictions) -> None:
        path, studies = run.folder / VALID_FILE, study_frame(predictions, run.data.valid_rows)
        write_csv(path, prediction_frame(predictions), index=True)
        if studies is not None:
            write_csv(studies_file(path), studies, index=True)

    minutes = run.config.tr_checkpoint_minutes
    return ModelCheckpoint(run.folder, run.monitor, dict(run.description), write_valid_predictions, minutes)


# Callbacks that observe the training come first, so that logs and checkpoints have the values of this iteration.
FIRST: dict[str, CallbackRow] = table(
    (
        CallbackRow("telemetry", "rates, memory and gradients", build=lambda run: run.telemetry, by_all=True),
        CallbackRow(
            "sample_losses",
            "tells the sampler of hard images what they cost",
            build=lambda run: SampleLosses(torch.tensor(LABEL_WEIGHTS) / sum(LABEL_WEIGHTS)),
            brought_by=lambda config: config.data_sampler == "hard",
            by_all=True,
        ),
        CallbackRow(
            "early_stopping",
            "ends a run whose metric no longer falls",
            build=build_early_stopping,
            brought_by=lambda config: config.tr_early_stop > 0,
            by_all=True,
        ),
    )
)
LAST: dict[str, CallbackRow] = table(
    (
        CallbackRow("metric_logger", "values for the trackers", build=lambda run: run.metric_logger, by_all=True),
        CallbackRow(
            "progress_bar",
            "the bar on the console",
            build=lambda run: ProgressBar(run.metric_logger, run.monitor, run.data.constant_log_loss),
        ),
        CallbackRow(
            "profiler",
            "a trace of some iterations",
            build=lambda run: Profiler(run.folder, run.config.tr_profile),
            brought_by=lambda config: config.tr_profile > 0,
        ),
        CallbackRow("checkpoint", "weights and states on disk", build=build_checkpoint, by_all=True),
    )
)


def own_callbacks(config: TrainConfig) -> list[CallbackRow]:
    """Return the rows that --tr_callbacks names; UsageError for a path that leads to none or stands twice."""
    if len(set(config.tr_callbacks)) < len(config.tr_callbacks):
        raise UsageError(f"--tr_callbacks={','.join(config.tr_callbacks)}: names a callback twice")
    return [own_row("tr_callbacks", path, CallbackRow) for path in config.tr_callbacks]


def build_callbacks(
    config: TrainConfig, folder: Path, data: TrainingData, tracker: Tracker, lineage: Lineage | None
) -> Sequence[Callback]:
    """Build the callbacks of a run, in the order of their calls; its checkpoints will hold ``lineage``."""
    description = {
        "config": to_dict(config),
        "transforms": data.transforms,
        "class_names": list(LABELS),
        "prevalences": data.prevalences.tolist(),
        "data_hash": data.hash,
        "images": image_settings(read_dataset_info(dataset_folder(config.data_input_folder, config.data_dataset))),
    }
    if lineage is not None:
        description["lineage"] = lineage.state()
    telemetry = Telemetry()
    metric_logger = MetricLogger(tracker, config.tr_iteration_log, telemetry)
    run = Watched(config, folder, data, telemetry, metric_logger, description)
    rows = [*FIRST.values(), *own_callbacks(config), *LAST.values()]
    brought = [row for row in rows if row.brought_by(config)]
    return tuple(row.build(run) for row in brought if row.by_all or distributed.is_main())
