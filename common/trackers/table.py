"""Table of the trackers, for ``--trackers``. A new tracker is a file and a row."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.cli.choices import Row, choose, load, table
from common.errors import UsageError
from common.trackers.tracker import Tracker


@dataclass(frozen=True)
class TrackerRow(Row):
    """One tracker: the dotted ``path`` of its class, the module it needs, and the package to install for it."""

    path: str = field(kw_only=True)
    module: str = field(kw_only=True)
    install: str = field(kw_only=True)


TRACKERS: dict[str, TrackerRow] = table(
    (
        TrackerRow(
            "neptune",
            "Neptune: files in the experiment's folder, or a server",
            path="common.trackers.neptune.NeptuneTracker",
            module="neptune",
            install="neptune-client",
        ),
        TrackerRow(
            "trackio",
            "a live dashboard on this machine: bash train.sh dashboard",
            path="common.trackers.trackio.TrackioTracker",
            module="trackio",
            install="trackio",
        ),
        TrackerRow(
            "tensorboard",
            "TensorBoard's event files in the experiment's folder",
            path="common.trackers.tensorboard.TensorBoardTracker",
            module="tensorboard",
            install="tensorboard",
        ),
        TrackerRow(
            "mlflow",
            "MLflow: a folder beside the experiments, or the server of MLFLOW_TRACKING_URI",
            path="common.trackers.mlflow.MlflowTracker",
            module="mlflow",
            install="mlflow-skinny",
        ),
    )
)


def check_trackers(names: Sequence[str]) -> None:
    """Raise UsageError for an unknown tracker, and for one whose package is not installed."""
    for name in names:
        row = choose("trackers", name, TRACKERS)
        if importlib.util.find_spec(row.module) is None:
            raise UsageError(f"--trackers={name}: its package is not installed; pip install {row.install}")


def build_trackers(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> list[Tracker]:
    """Return the trackers called ``names``, each once. ``options`` are their arguments by name."""
    paths = {name: choose("trackers", name, TRACKERS).path for name in names}
    return [load(path)(**options.get(name, {})) for name, path in paths.items()]
