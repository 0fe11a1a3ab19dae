"""Shows a run's progress: a bar, and a line for each validation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from common.callbacks.callback import Callback
from common.callbacks.metric_logger import MetricLogger
from common.cli import console
from common.cli.console import FILE_ONLY

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, StepOutput

logger = logging.getLogger(__name__)


class ProgressBar(Callback):
    """A bar over the run's iterations on stderr (without a terminal a line a minute), and a line each validation."""

    def __init__(self, metrics: MetricLogger, monitor: str, reference: float) -> None:
        """``metrics`` has the values to show. ``reference`` is the constant predictor's value of ``monitor``."""
        self.metrics = metrics
        self.monitor = monitor
        self.reference = reference
        self.bar: tqdm | None = None
        self.best = (math.inf, 0)

    def on_train_begin(self, network: AbstractNetwork) -> None:
        """Open the bar where the run stands."""
        # tqdm's own time left ignores validations. The postfix shows one that counts them.
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        whole = network.training.iteration_num
        self.bar = console.progress(total=whole, initial=network.iteration, unit="it", bar_format=form)

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """Advance by one iteration. Show the time left and the values logged last."""
        telemetry = self.metrics.telemetry
        left = {} if telemetry is None else {"perf/eta_seconds": telemetry.seconds_left(network)}
        self.bar.set_postfix_str(describe_pace(self.metrics.latest | left), refresh=False)
        self.bar.update()

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Print the iteration, the metric, and the constant predictor's value."""
        self.best = min(self.best, (metrics[self.monitor], network.iteration))
        self._print(
            f"iteration {network.iteration}/{network.training.iteration_num}: {self.monitor} "
            f"{metrics[self.monitor]:.4f} (constant predictor {self.reference:.4f})"
        )

    def on_interrupt(self, network: AbstractNetwork) -> None:
        """Leave the bar as it stands."""
        self.bar.close()

    def on_train_end(self, network: AbstractNetwork) -> None:
        """Leave the finished bar on the screen; print the best value beside the constant predictor's."""
        self.bar.close()
        value, iteration = self.best
        self._print(
            f"best {self.monitor} {value:.4f} at iteration {iteration}: {value / self.reference:.2f} of the constant "
            f"predictor's {self.reference:.4f}"
        )
        guard = network.guard
        if guard.skips:
            self._print(
                f"{network.step} of {network.step + guard.skips} updates landed; skipped: {guard.scaler_skips} by "
                f"float16's scaler (its normal work), {guard.nonfinite_skips} for what was not finite"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far and its iteration."""
        return {"best": list(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an interrupted run's best."""
        self.best = tuple(state["best"])

    @staticmethod
    def _print(line: str) -> None:
        """Write a line above the bar and into the log file."""
        console.tell(line)
        logger.info("%s", line, extra={FILE_ONLY: True})


def describe_pace(latest: Mapping[str, float]) -> str:
    """Describe what is known: time left (with validations), loss, speed, waiting and memory.

    A narrow terminal cuts off the last of them.
    """
    parts = []
    if "perf/eta_seconds" in latest:
        parts.append(f"{tqdm.format_interval(latest['perf/eta_seconds'])} left")
    if "train/loss" in latest:
        parts.append(f"loss {latest['train/loss']:.4f}")
    if "perf/images_per_second" in latest:
        parts.append(f"{latest['perf/images_per_second']:.0f} images/s")
        parts.append(f"waits for data {latest['perf/data_wait_share']:.0%}")
    if "perf/gpu_memory_gb" in latest:
        parts.append(f"GPU {latest['perf/gpu_memory_gb']:.1f} GB")
    skipped = latest.get("train/scaler_skips", 0) + latest.get("train/nonfinite_skips", 0)
    if skipped:
        parts.append(f"{skipped:.0f} updates skipped")
    return ", ".join(parts)
