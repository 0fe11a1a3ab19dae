"""Neptune, through neptune-client: files in the experiment's folder, or a server if a token names one."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import random
import sys
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from common.cli.console import FILE_ONLY
from common.privacy import anonymous
from common.trackers.bounded import shareable, within

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "NEPTUNE_API_TOKEN"
PROJECT_VARIABLE = "NEPTUNE_PROJECT"
DATA_VARIABLE = "NEPTUNE_DATA_DIRECTORY"
SWAGGER_PATH = "/api/backend/swagger.json"
PROBE_S = 3.0  # to ask the server for its swagger file
START_S = 5.0  # to start a run on the server, with the probe
STOP_S = 5.0  # to send the rest at the end
FILE_LIMIT_BYTES = 32 * 2**20  # neptune's own limit for a file that it copies
SWAGGER_LIMIT_BYTES = 32 * 2**20
TEXT_SUFFIXES = (".yaml", ".json", ".log", ".txt")


class NeptuneTracker:
    """Writes a run under ``<experiment>/.neptune``, or sends it to the server of NEPTUNE_API_TOKEN if that answers.

    ``mode``: offline asks no server, async asks it, auto asks it if there is a token. The token comes from the
    environment only, the server's project from ``project`` or NEPTUNE_PROJECT. Only the given options, metrics and
    files are written: no host name, source code, git state, console output or hardware. Paths lose home folder and user
    name.
    Starting waits at most 5 s for a server, finishing 5 s for sending.

    A forked process copies neptune's buffer and threads and would write the buffer again. Start worker processes by
    ``forkserver`` or ``spawn``, as common/datasets does.
    """

    def __init__(self, project: str | None = None, mode: str = "auto") -> None:
        self.project = project
        self.mode = mode
        self.run: Any = None
        self.offline = True
        self.folder = Path()
        self.cleanup = ExitStack()

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        data_folder = folder.resolve() / ".neptune"
        self.folder = folder
        # Without it neptune makes .neptune in the current folder. Keep it to the end: a late answer reads it too.
        self.cleanup.enter_context(_environment_variable(DATA_VARIABLE, str(data_folder)))
        if self.project is not None:
            self.cleanup.enter_context(_environment_variable(PROJECT_VARIABLE, self.project))
        with _no_side_effects():
            neptune = _import_neptune()
            self.run = self._online_run(neptune, experiment_id, data_folder)
            self.offline = self.run is None
            if self.run is None:
                self.run = _init_run(neptune, experiment_id, "offline")
        self.run["config"] = {name: shareable(value) for name, value in config.items()}

    def view(self) -> str:
        if not self.offline:
            return f"neptune: {self.run.get_url()}"
        return f"neptune: offline in {self.folder / '.neptune'}; common/trackers/README.md tells how it is sent later"

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        """Append each finite value to the series of its name, at ``iteration``. Neptune has no NaN."""
        for name, value in {**metrics, "step": step}.items():
            if math.isfinite(value):
                self.run[name].append(float(value), step=iteration)
        self.run.wait(disk_only=True)  # so that a killed run keeps it, and a fork finds an empty buffer

    def log_figure(self, name: str, html: str) -> None:
        from neptune.types import File

        self.run[f"figures/{name}"].upload(File.from_content(html, extension="html"))

    def log_file(self, path: Path) -> None:
        """Copy a file of up to 32 MiB into the run. Its path would be useless elsewhere and name the user's folders.

        Configurations and logs hold such paths too. Their copies have no home folder, user or host name.
        """
        size = path.stat().st_size
        if size > FILE_LIMIT_BYTES:
            logger.info("Neptune: %s is left out, it has %d MiB and the limit is 32", path.name, size // 2**20)
            return
        from neptune.types import File

        data = path.read_bytes()
        if path.suffix in TEXT_SUFFIXES:
            data = anonymous(data.decode("utf-8", "replace")).encode("utf-8")
        content = File.from_content(data, extension=path.suffix.removeprefix(".") or "bin")
        self.run[f"files/{path.name}"].upload(content)

    def finish(self, status: str) -> None:
        """Note the status, write the buffer, and wait up to 5 s until the server has it.

        What the server did not take stays on disk, and a warning says where.
        """
        run, self.run = self.run, None
        with self.cleanup:
            if run is None:
                return
            with suppress(TimeoutError):
                within(STOP_S, lambda: self._stop(run, status))
            left = unsent(self.folder / ".neptune")
            if left:
                logger.warning(
                    "Neptune: %d operations wait in %s, the server did not take them; metrics.jsonl has everything, "
                    "and common/trackers/README.md tells how they are sent later",
                    left,
                    anonymous(str(self.folder / ".neptune")),
                )

    def _stop(self, run: Any, status: str) -> None:
        run["status"] = status
        run.wait(disk_only=True)
        run.stop(seconds=0 if self.offline else STOP_S - 1)

    def _online_run(self, neptune: ModuleType, experiment_id: str, data_folder: Path) -> Any:
        """Return a run on the token's server, or None. With a token, a failure gets one line of warning."""
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if self.mode == "offline" or (self.mode == "auto" and not token):
            return None
        end = time.monotonic() + START_S
        try:
            if not token:
                raise ValueError(f"{TOKEN_VARIABLE} is not set")
            if not os.environ.get(PROJECT_VARIABLE):
                raise ValueError(f"{PROJECT_VARIABLE} is not set")
            probe(server_address(token), PROBE_S)
            return within(
                end - time.monotonic(),
                lambda: _init_run(neptune, experiment_id, "async"),
                discard=lambda run: run.stop(seconds=0),
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0] if isinstance(error, (OSError, ValueError)) else ""
            logger.warning(
                "Neptune: no run on a server (%s%s); writing offline to %s",
                type(error).__name__,
                f": {reason}" if reason else "",
                anonymous(str(data_folder)),
            )
            return None


def unsent(data_folder: Path) -> int:
    """Return how many operations in ``data_folder`` the server has not acknowledged.

    neptune removes a run that the server has completely. Otherwise two files count operations written and acknowledged.
    """
    count = 0
    for written in data_folder.glob("async/*/last_put_version"):
        acknowledged = written.with_name("last_ack_version")
        with suppress(OSError, ValueError):  # removed meanwhile, or cut by a full disk
            count += int(written.read_text()) - int(acknowledged.read_text() if acknowledged.exists() else 0)
    return count


def server_address(token: str) -> str:
    """Return the server's address from an API token, base64 of a JSON object. ValueError if it has none."""
    try:
        document = json.loads(base64.b64decode(token))
        address = document.get("api_url") or document["api_address"]
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{TOKEN_VARIABLE} is not a Neptune token") from None
    if urllib.parse.urlsplit(str(address)).scheme not in ("http", "https"):
        raise ValueError(f"{TOKEN_VARIABLE} names no http(s) server")
    return str(address).rstrip("/")


def probe(address: str, seconds: float) -> None:
    """Ask the server at ``address`` for its swagger file. OSError or ValueError unless it comes within ``seconds``.

    neptune itself would wait for minutes on a server that refuses or is silent. The token is not sent.
    """

    def ask() -> bytes:
        with urllib.request.urlopen(address + SWAGGER_PATH, timeout=seconds) as response:
            return response.read(SWAGGER_LIMIT_BYTES)

    # urllib's time-out holds for each wait on the socket: a server that sends a byte now and then would pass.
    document = within(seconds, ask)
    try:
        json.loads(document)
    except ValueError:
        raise ValueError("the server's answer is not a swagger file") from None


def _init_run(neptune: ModuleType, experiment_id: str, mode: str) -> Any:
    return neptune.init_run(
        mode=mode,
        name=experiment_id,
        source_files=[],
        git_ref=False,
        capture_stdout=False,
        capture_stderr=False,
        capture_hardware_metrics=False,
        capture_traceback=False,  # with any of the four neptune also writes the host's name
        monitoring_namespace="monitoring",
    )


def _import_neptune() -> ModuleType:
    """Import neptune, and send its messages to train.log instead of the console."""
    import neptune

    for name in ("neptune", "neptune_no_prefix"):
        neptune_logger = logging.getLogger(name)
        neptune_logger.handlers.clear()
        neptune_logger.propagate = True
        neptune_logger.addFilter(_mark_as_file_only)
    return neptune


def _mark_as_file_only(record: logging.LogRecord) -> bool:
    setattr(record, FILE_ONLY, True)
    return True


@contextmanager
def _no_side_effects() -> Iterator[None]:
    """Undo what neptune does to the process at its start.

    It warns that it is deprecated and replaces sys.excepthook. It also draws its folder's name from the global random
    generator, so that a tracked run would differ from an untracked one.
    """
    state, hook = random.getstate(), sys.excepthook
    try:
        with warnings.catch_warnings(record=True):
            yield
    finally:
        random.setstate(state)
        sys.excepthook = hook


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
