"""Shows where the time of an iteration goes: a trace for a viewer and a table by phase."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from common.callbacks.callback import Callback
from common.cli import console
from common.cli.console import FILE_ONLY

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, StepOutput

logger = logging.getLogger(__name__)

FILE_NAME = "profile.json"
SKIPPED = 3  # iterations left out: the first ones start processes, choose kernels and fill caches
# Names of the phases in a trace: the loop's own, and the start of torch's DataLoader's.
PHASES = {
    "waiting for data": "enumerate(DataLoader)",
    "copy to the device": "phase: copy",
    "forward": "phase: forward",
    "backward": "phase: backward",
    "optimizer step": "phase: step",
}


class Profiler(Callback):
    """Traces some iterations of a run, then writes ``profile.json`` (Chrome's trace format) and prints a table.

    The host's column is the time that the loop spends in a phase. The device's column is the time that a GPU needs for
    that phase's work, which may run later and beside other phases.
    """

    def __init__(self, folder: Path, iterations: int) -> None:
        """``iterations`` to trace, after the first three."""
        self.folder = folder
        self.iterations = iterations
        self.seen = 0
        self.profile: profile | None = None
        self.started = 0.0

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """Start or end the trace when it is time."""
        self.seen += 1
        if self.seen == SKIPPED:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (network.device.type == "cuda")
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own remarks are for torch's developers
            self.profile = profile(activities=activities)
            self.profile.start()
            self.started = time.perf_counter()
        elif self.profile is not None and self.seen == SKIPPED + self.iterations:
            self._finish(network)

    def _finish(self, network: AbstractNetwork) -> None:
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        seconds = time.perf_counter() - self.started
        finished, self.profile = self.profile, None
        finished.stop()
        finished.export_chrome_trace(str(self.folder / FILE_NAME))
        for line in phase_table(finished.key_averages(), seconds, self.iterations):
            console.tell(line)
            logger.info("%s", line, extra={FILE_ONLY: True})


def phase_table(events: Iterable[Any], seconds: float, iterations: int) -> list[str]:
    """Return the table's lines: milliseconds per iteration by phase, and the share of ``seconds`` on the host."""
    whole = 1000 * seconds / iterations
    lines = [f"{'phase':<20}{'host ms':>10}{'share':>8}{'device ms':>12}"]
    rest = whole
    events = list(events)
    for phase, name in PHASES.items():
        found = [event for event in events if event.key.startswith(name)]
        host = sum(event.cpu_time_total for event in found) / 1000 / iterations
        device = sum(event.device_time_total for event in found) / 1000 / iterations
        rest -= host
        lines.append(f"{phase:<20}{host:>10.2f}{host / whole:>8.1%}{device:>12.2f}")
    lines.append(f"{'the rest':<20}{rest:>10.2f}{rest / whole:>8.1%}")
    lines.append(f"{'iteration':<20}{whole:>10.2f}")
    return lines
