"""Measures a run's speed, waiting for data, memory, and time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from common.callbacks.callback import Callback

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, StepOutput

# Guess of a validation's time before the first: a forward pass takes about a third of forward and backward.
FORWARD_SHARE = 1 / 3
LISTED_S = 10.0  # the list of this run's processes may be so old; making it looks at all of the machine's


class Telemetry(Callback):
    """Measures between two calls of :meth:`values`, which MetricLogger adds to each of its lines.

    Nothing here waits for the device. Validations are timed apart: the speed is that of training alone, and the time
    left includes the validations to come.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock`` gives seconds."""
        self.clock = clock
        self.images = 0
        self.started = 0.0  # start of the interval
        self.waited = 0.0  # the network's wait_seconds at the start of the interval
        self.iterations = 0
        self.iteration_seconds = 0.0  # of this fit's finished intervals
        self.iterations_timed = 0
        self.validation_seconds: float | None = None
        self.processes: list[psutil.Process] = []
        self.listed_at = -math.inf

    def on_train_begin(self, network: AbstractNetwork) -> None:
        """Start measuring."""
        self.listed_at = -math.inf  # other loading processes than before
        self._begin(network)

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """Count the images."""
        self.images += len(output.image_ids)
        self.iterations += 1

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Leave the validation's time out of the interval."""
        self.validation_seconds = network.validation_seconds
        self.started += network.validation_seconds

    def values(self, network: AbstractNetwork) -> dict[str, float | Tensor]:
        """Return the values measured since the last call, by their names in metrics.jsonl, and start anew.

        A value on the device is a scalar tensor, which is not waited for.
        """
        seconds = max(self.clock() - self.started, 1e-9)
        values = {
            "perf/images_per_second": self.images / seconds,
            "perf/data_wait_share": min((network.wait_seconds - self.waited) / seconds, 1.0),
            "perf/host_memory_gb": self._host_memory_gb(),
            "perf/eta_seconds": self.seconds_left(network),
        }
        if network.device.type == "cuda":
            values["perf/gpu_memory_gb"] = torch.cuda.max_memory_allocated(network.device) / 1e9
        if network.guard is not None and network.guard.gradient_norm is not None:
            values["train/gradient_norm"] = network.guard.gradient_norm
        if network.scaler.is_enabled():  # its own get_scale waits
            values["train/loss_scale"] = network.scaler.scale(torch.ones((), device=network.device))
        self._begin(network)
        return values

    @staticmethod
    def skips(network: AbstractNetwork) -> dict[str, float]:
        """Return the number of updates that did not land, as far as the host knows."""
        values = {}
        if network.scaler.is_enabled():
            values["train/scaler_skips"] = network.guard.scaler_skips
        if network.guard.mode == "skip":
            values["train/nonfinite_skips"] = network.guard.nonfinite_skips
        return values

    def seconds_left(self, network: AbstractNetwork) -> float:
        """Return the seconds to the end of the run with validations, at the pace so far; 0 before any iteration."""
        training = network.training
        timed = self.iterations_timed + self.iterations
        if not timed:
            return 0.0
        pace = (self.iteration_seconds + self.clock() - self.started) / timed
        interval = training.iteration_valid
        # A validation due after this iteration is still to come.
        validations = -(-training.iteration_num // interval) - (network.iteration - 1) // interval
        each = self.validation_seconds
        if each is None:
            each = pace * FORWARD_SHARE * len(training.valid_loader)
        return (training.iteration_num - network.iteration) * pace + validations * each

    def _begin(self, network: AbstractNetwork) -> None:
        if self.iterations:
            self.iteration_seconds += self.clock() - self.started
            self.iterations_timed += self.iterations
        self.images = self.iterations = 0
        self.started = self.clock()
        self.waited = network.wait_seconds

    def _host_memory_gb(self) -> float:
        """Return the memory of this process and its children in GB. Shared pages count once for each process."""
        if self.clock() - self.listed_at >= LISTED_S:
            own = psutil.Process()
            self.processes = [own, *own.children(recursive=True)]
            self.listed_at = self.clock()
        total = 0
        for process in self.processes:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it ended meanwhile
                continue
        return total / 1e9
