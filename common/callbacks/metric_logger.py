"""Logs training loss and validation metrics to a tracker, without waiting for the device's newest values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.callbacks.callback import Callback
from common.callbacks.telemetry import Telemetry
from common.trackers.tracker import Tracker
from common.training import distributed
from common.training.arrival import HostCopy

if TYPE_CHECKING:
    from common.networks.guard import Attempt
    from common.networks.network import AbstractNetwork, StepOutput


@dataclass(frozen=True)
class Line:
    """A line to write after ``iteration``: the ``values`` known to the host, and ``copies`` still on their way.

    ``copies`` begin with the loss's sum and count; ``names`` name the rest. ``attempt`` is the update whose outcome the
    host did not know yet.
    """

    network: AbstractNetwork
    iteration: int
    attempt: Attempt | None
    values: Mapping[str, float]
    names: tuple[str, ...]
    copies: HostCopy


class MetricLogger(Callback):
    """Logs ``train/loss`` (mean since the last line), ``train/learning_rate`` and every validation's metrics.

    The mean leaves out micro-batches whose loss is not finite, so that a skipped one doesn't hide the others. The rate
    is that of the last optimizer step, the highest of all parameter groups. On a GPU a line is written one iteration
    late, when its values have arrived, but before anything else is logged or saved. ``latest`` holds the last logged
    values, for display.
    """

    def __init__(self, tracker: Tracker, interval: int, telemetry: Telemetry | None = None) -> None:
        """``interval``: iterations between two lines of the training loss. ``telemetry`` adds values to each line."""
        self.telemetry = telemetry
        self.tracker = tracker
        self.interval = interval
        self.latest: dict[str, float] = {}
        self.loss_sum: Any = 0.0
        self.loss_count: Any = 0.0
        self.line: Line | None = None

    def on_step_end(self, network: AbstractNetwork) -> None:
        """Write the line that was due before this step. The device is busy with the step meanwhile."""
        self._write()

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """Add up the loss on the device. Send it to the host when a line is due."""
        self._write()
        loss = output.loss.detach().double()
        finite = torch.isfinite(loss)
        self.loss_sum = self.loss_sum + torch.where(finite, loss, 0.0)
        self.loss_count = self.loss_count + finite.double()
        if network.iteration % self.interval == 0 or network.iteration == network.training.iteration_num:
            self._send(network)
            if not network.guard.late:
                self._write()

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Log all metrics of the validation."""
        self._write()
        network.settle()
        self._log(dict(metrics), network.iteration, network.step)

    def on_train_end(self, network: AbstractNetwork) -> None:
        """Write the last line."""
        self._write()

    def on_interrupt(self, network: AbstractNetwork) -> None:
        """Write the last line."""
        self._write()

    def on_error(self, network: AbstractNetwork) -> None:
        """Write the line that is due. Several processes don't: its loss is a mean over all, and some may be gone."""
        if distributed.world_size() == 1:
            self._write()

    def state_dict(self) -> dict[str, Any]:
        """Write what is due, then return the loss summed since, as the mean over the processes."""
        self._write()
        return {
            "loss_sum": distributed.mean(float(self.loss_sum)),
            "loss_count": distributed.mean(float(self.loss_count)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with an interrupted run's sum."""
        self.loss_sum = state["loss_sum"]
        self.loss_count = state["loss_count"]

    def _send(self, network: AbstractNetwork) -> None:
        """Start sending the values of a line to the host."""
        measured = self.telemetry.values(network) if self.telemetry else {}
        there = {name: value for name, value in measured.items() if isinstance(value, Tensor)}
        known = {name: value for name, value in measured.items() if name not in there}
        self.line = Line(
            network,
            network.iteration,
            network.guard.pending,
            {"train/learning_rate": network.training.schedule.lr, **known},
            tuple(there),
            HostCopy([self.loss_sum, self.loss_count, *there.values()]),
        )
        self.loss_sum, self.loss_count = 0.0, 0.0

    def _write(self) -> None:
        """Write the line that is due, if any. All processes call this at the same places of the loop."""
        line, self.line = self.line, None
        if line is None:
            return
        network = line.network
        total, count, *values = (float(value) for value in line.copies.wait())
        count = distributed.mean(count)
        loss = distributed.mean(total) / count if count else math.nan
        try:
            if network.guard.pending is line.attempt:
                network.settle()
        finally:  # the line tells why an update that is not finite ends the run
            skips = self.telemetry.skips(network) if self.telemetry else {}
            metrics = {"train/loss": loss, **line.values, **dict(zip(line.names, values, strict=True)), **skips}
            self._log(metrics, line.iteration, network.settled_step)

    def _log(self, metrics: dict[str, float], iteration: int, step: int) -> None:
        self.latest.update(metrics)
        self.tracker.log(metrics, iteration, step)
