"""Training loss and validation metrics to a tracker, with one synchronization of the device per logged line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from common.callbacks.callback import Callback
from common.callbacks.telemetry import Telemetry
from common.trackers.tracker import Tracker
from common.training import distributed

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, StepOutput


class MetricLogger(Callback):
    """Logs ``train/loss`` (mean since the last line), ``train/learning_rate`` and every validation's metrics.

    The mean is over the micro-batches whose loss is finite, so that a skipped one doesn't hide the others. The rate is
    that of the last optimizer step, the highest of all parameter groups. ``latest`` holds the last values logged, for
    whoever shows them.
    """

    def __init__(self, tracker: Tracker, interval: int, telemetry: Telemetry | None = None) -> None:
        """``interval``: iterations between two lines of the training loss, which ``telemetry`` adds its values to."""
        self.telemetry = telemetry
        self.tracker = tracker
        self.interval = interval
        self.latest: dict[str, float] = {}
        self.loss_sum: Any = 0.0
        self.loss_count: Any = 0.0

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """Add the loss on the device; read it when a line is due."""
        loss = output.loss.detach().double()
        finite = torch.isfinite(loss)
        self.loss_sum = self.loss_sum + torch.where(finite, loss, 0.0)
        self.loss_count = self.loss_count + finite.double()
        if network.iteration % self.interval == 0 or network.iteration == network.training.iteration_num:
            self._log_training(network)

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Log all metrics of the validation."""
        self._log(network, dict(metrics))

    def state_dict(self) -> dict[str, Any]:
        """Return the loss that is summed but not logged yet, the mean over the processes."""
        return {
            "loss_sum": distributed.mean(float(self.loss_sum)),
            "loss_count": distributed.mean(float(self.loss_count)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sum of an interrupted run."""
        self.loss_sum = state["loss_sum"]
        self.loss_count = state["loss_count"]

    def _log_training(self, network: AbstractNetwork) -> None:
        network.settle()
        count = distributed.mean(float(self.loss_count))
        loss = distributed.mean(float(self.loss_sum)) / count if count else math.nan
        self.loss_sum, self.loss_count = 0.0, 0.0
        measured = self.telemetry.values(network) if self.telemetry else {}
        self._log(network, {"train/loss": loss, "train/learning_rate": network.training.schedule.lr, **measured})

    def _log(self, network: AbstractNetwork, metrics: dict[str, float]) -> None:
        network.settle()
        self.latest.update(metrics)
        self.tracker.log(metrics, network.iteration, network.step)
