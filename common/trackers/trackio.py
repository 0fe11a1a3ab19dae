"""trackio: a live dashboard of one or several runs, on this machine or at TRACKIO_SERVER_URL."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shlex
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.trackers.bounded import shareable, within

logger = logging.getLogger(__name__)

FOLDER = ".trackio"  # beside the experiments; its SQLite files must lie on a local disk
PLACE = "TRACKIO_DIR"
SERVER = "TRACKIO_SERVER_URL"
# trackio itself retries a lost server again and again, and waits half a minute for it at the end.
PROBE_S = 3.0
STOP_S = 5.0


class TrackioTracker:
    """Writes a run for each experiment, in a project named after the results' folder.

    The dashboard's files lie in TRACKIO_DIR, or in ``.trackio`` beside the experiments. A killed run loses about half a
    second. If TRACKIO_SERVER_URL is set and answers within 3 s, that server gets the run instead of the files.
    """

    def __init__(self) -> None:
        self.run: Any = None
        self.results = Path()
        self.iteration = 0

    def start(self, experiment_id: str, folder: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault(PLACE, str(folder.parent.resolve() / FOLDER))
        if os.environ.get(SERVER):
            try:
                probe(os.environ[SERVER])
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", error)
                logger.warning("trackio: the server that %s names: %s; the run goes to files here", SERVER, reason)
                del os.environ[SERVER]  # trackio reads it
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # it greets at length
            self.run = trackio.init(
                project=folder.parent.name or "results",
                name=experiment_id,
                config={name: shareable(value) for name, value in config.items()},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.results = folder.parent

    def view(self) -> str:
        if os.environ.get(SERVER):  # the address holds a token
            return f"trackio: live curves are on the server that {SERVER} names"
        return f"trackio: live curves: bash train.sh dashboard {shlex.quote(str(self.results))}"

    def log(self, metrics: Mapping[str, float], iteration: int, step: int) -> None:
        values = {**metrics, "train/optimizer_step": step}  # "step" is trackio's own word
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.run.log(finite, step=iteration)
        self.iteration = iteration

    def log_figure(self, name: str, html: str) -> None:
        """Show the figure beside the last values."""
        import trackio

        self.run.log({name: trackio.Html(html, inject=False)}, step=self.iteration)

    def log_file(self, path: Path) -> None:
        """Nothing to do: the run's files lie on the same machine."""

    def finish(self, status: str) -> None:
        """Wait for what is still to be written, for a server at most 5 s."""
        run, self.run = self.run, None
        if run is None:
            return
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            if not os.environ.get(SERVER):
                trackio.finish()
                return
            trackio.context_vars.current_run.set(None)  # else trackio ends it again at exit, and waits
            try:
                within(STOP_S, run.finish)
            except TimeoutError:
                logger.warning("trackio: the server did not take all within %g s; metrics.jsonl has everything", STOP_S)


def probe(address: str) -> None:
    """Ask the server at ``address`` for its page. OSError or ValueError unless it answers within 3 s."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise ValueError("that is no http(s) address")
    page = parts._replace(query="", fragment="").geturl()

    def ask() -> None:
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(page, timeout=PROBE_S):
            pass  # any answer shows that it is there

    within(PROBE_S, ask)
