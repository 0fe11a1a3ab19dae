"""MLflow: a folder beside the experiments, or the server that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.trackers.bounded import shareable, within

logger = logging.getLogger(__name__)

FOLDER = "mlruns"
FIGURES = "figures"
# A slow or silent server may cost some seconds at the start and at the end, not more.
BOUNDS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "3", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
STOP_S = 5.0
ALLOW = "MLFLOW_ALLOW_FILE_STORE"  # without it mlflow wants a database
# Without the last, mlflow prints the server's address at the end of a run, which may hold a password.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    ALLOW: "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MlflowTracker:
    """Logs in a thread of its own, so that a slow server never delays an iteration.

    MLflow's own asynchronous logging has several threads, which get in each other's way in a folder.
    """

    def __init__(self) -> None:
        self.client: Any = None
        self.run = ""
        self.folder: Path | None = None
        self.thread = ThreadPoolExecutor(1, "mlflow")
        self.pending: list[Future[Any]] = []

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.update(QUIET)
        for name, value in BOUNDS.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        server = os.environ.get("MLFLOW_TRACKING_URI")
        self.folder = None if server else folder.parent.resolve() / FOLDER
        client = MlflowClient(server or self.folder.as_uri())
        name = folder.parent.name or "results"
        try:
            known = client.get_experiment_by_name(name)
            group = known.experiment_id if known is not None else client.create_experiment(name)
            self.run = client.create_run(group, run_name=experiment_id).info.run_id
        except Exception as error:
            raise self._without_address(error) from None
        self.client = client
        params = [Param(option, str(shareable(value))) for option, value in config.items()]
        self._soon(lambda: client.log_batch(self.run, params=params))

    def view(self) -> str:
        if self.folder is None:  # an address may hold a password
            return "mlflow: the run is on the server that MLFLOW_TRACKING_URI names"
        command = f"mlflow ui --backend-store-uri {shlex.quote(str(self.folder))}"
        return f"mlflow: {ALLOW}=true DO_NOT_TRACK=true {command} (pip install mlflow)"

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        from mlflow.entities import Metric

        now, client = int(time.time() * 1000), self.client
        values = [
            Metric(name, float(value), now, iteration)
            for name, value in {**metrics, "step": step}.items()
            if math.isfinite(value)
        ]
        self._soon(lambda: client.log_batch(self.run, metrics=values))

    def log_figure(self, name: str, html: str) -> None:
        client = self.client
        self._soon(lambda: client.log_text(self.run, html, f"{FIGURES}/{name}.html"))

    def log_file(self, path: Path) -> None:
        client = self.client
        self._soon(lambda: client.log_artifact(self.run, str(path)))

    def finish(self, status: str) -> None:
        """Note the status, and wait up to 5 s for what is still to be sent."""
        client, self.client = self.client, None
        if client is None:
            return
        self._soon(lambda: client.set_terminated(self.run, STATUS.get(status, "FAILED")))
        try:
            within(STOP_S, lambda: [self._result(future) for future in self.pending])
        except TimeoutError:
            logger.warning("MLflow: the server did not take all within %g s; metrics.jsonl has everything", STOP_S)
        finally:
            self.thread.shutdown(wait=False, cancel_futures=True)

    def _soon(self, work: Callable[[], Any]) -> None:
        """Queue ``work`` for the thread. Raise errors of earlier work here."""
        done = [future for future in self.pending if future.done()]
        self.pending = [future for future in self.pending if not future.done()] + [self.thread.submit(work)]
        try:
            for future in done:
                self._result(future)
        except Exception:
            self.client = None  # finish would ask the broken server again and delay the iteration
            self.thread.shutdown(wait=False, cancel_futures=True)
            raise

    def _result(self, future: Future[Any]) -> None:
        try:
            future.result()
        except Exception as error:
            raise self._without_address(error) from None

    def _without_address(self, error: BaseException) -> Exception:
        """Return the root cause of an error. mlflow's own message quotes the server's address with its password."""
        while (cause := error.__cause__ or error.__context__) is not None:
            error = cause
        if self.folder is not None:
            return OSError(str(error))
        said = re.sub(r"//[^/\s@]*@", "//", str(error))
        return ConnectionError(f"the server that MLFLOW_TRACKING_URI names: {said}")
