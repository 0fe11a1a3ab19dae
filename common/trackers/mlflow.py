"""MLflow: a folder beside the experiments, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.trackers.bounded import shareable, within

logger = logging.getLogger(__name__)

FOLDER = "mlruns"
# A server that is slow or silent may cost seconds at the start and at the end, no more.
BOUNDS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
STOP_S = 5.0
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """Logs in a thread of MLflow's own, so that a slow server never delays an iteration."""

    def __init__(self) -> None:
        self.client: Any = None
        self.run = ""
        self.pending: list[Any] = []

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.update(QUIET)
        for name, value in BOUNDS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or (folder.parent.resolve() / FOLDER).as_uri()
        client = MlflowClient(place)
        name = folder.parent.name or "results"
        known = client.get_experiment_by_name(name)
        group = known.experiment_id if known is not None else client.create_experiment(name)
        self.run = client.create_run(group, run_name=experiment_id).info.run_id
        self.client = client
        self.pending = [
            client.log_param(self.run, name, shareable(value), synchronous=False) for name, value in config.items()
        ]

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        self.pending = [operation for operation in self.pending if not _is_done(operation)]
        for name, value in {**metrics, "step": step}.items():
            if math.isfinite(value):
                self.pending.append(self.client.log_metric(self.run, name, value, step=iteration, synchronous=False))

    def log_file(self, path: Path) -> None:
        self.client.log_artifact(self.run, str(path))

    def finish(self, status: str) -> None:
        """Wait up to 5 s for what is on its way, and note the status."""
        client, self.client = self.client, None
        if client is None:
            return

        def stop() -> None:
            for operation in self.pending:
                operation.wait()
            client.set_terminated(self.run, STATUS.get(status, "FAILED"))

        try:
            within(STOP_S, stop)
        except TimeoutError:
            logger.warning("MLflow: the server did not take all within %g s; metrics.jsonl has everything", STOP_S)


def _is_done(operation: Any) -> bool:
    return all(future.done() for future in operation._operation_futures)
