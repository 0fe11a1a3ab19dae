"""Saves ``best.pt`` at the best validation; ``last.pt`` at validations, interruptions and every few minutes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.callbacks.callback import Callback
from common.checkpoint import BEST, DESCRIPTIVE_KEYS, LAST, PREVIOUS, RAW, metric_key, save_checkpoint
from common.files import keep_copy
from common.training import distributed

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, Predictions, StepOutput

logger = logging.getLogger(__name__)


class ModelCheckpoint(Callback):
    """Writes the checkpoints of a run. Put it last in the list of callbacks, so that it saves the others' new state.

    ``best.pt`` follows the lowest ``monitor`` of the trained weights and their averages; ``best_weights`` says which.
    At each new best ``on_best`` is called first, which writes the predictions of these weights. Both files hold
    ``description`` (config, transforms, class names, …), from which predict and evaluate rebuild the model.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        description: Mapping[str, Any],
        on_best: Callable[[Predictions], None],
        minutes: float = 0.0,
    ) -> None:
        """``monitor`` is a metric's key, such as ``valid/weighted_log_loss``; lower values are better.

        ``last.pt`` is saved at least every ``minutes``, at step boundaries; 0: at validations only.
        """
        self.folder = folder
        self.monitor = monitor
        self.description = dict(description)
        self.on_best = on_best
        self.best = math.inf
        self.best_iteration = 0
        self.best_weights = ""
        self.latest: dict[str, Any] = {"metrics": {}, "best_weights": RAW}  # of the last validation
        self.minutes = minutes
        self.saved_at = time.monotonic()

    def on_train_begin(self, network: AbstractNetwork) -> None:
        """Start counting the minutes."""
        self.saved_at = time.monotonic()

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """Save the state if the last one is old enough. A validation that is due saves it anyway."""
        if not self.minutes or not network.at_step_boundary or network.validation_due:
            return
        if distributed.any_process(time.monotonic() - self.saved_at >= 60 * self.minutes):
            self._save_last(network, self._contents(network))

    def on_interrupt(self, network: AbstractNetwork) -> None:
        """Save the state that a resumed run goes on from."""
        self._save_last(network, self._contents(network))

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Save the state after this validation, and the weights if they are the best so far."""
        weights, value = min(self._candidates(network, metrics), key=lambda candidate: candidate[1])
        improved = value < self.best
        if improved:
            self.best, self.best_iteration, self.best_weights = value, network.iteration, weights
        self.latest = {"metrics": dict(metrics), "best_weights": weights}
        contents = self._contents(network)
        if improved and distributed.is_main():
            self.on_best(network.valid_predictions[weights])
            best = {key: value for key, value in contents.items() if key in DESCRIPTIVE_KEYS}
            save_checkpoint(self.folder / BEST, best)
            logger.info("iteration %d: %s written", network.iteration, BEST)
        self._save_last(network, contents)

    def _contents(self, network: AbstractNetwork) -> dict[str, Any]:
        """Return a checkpoint's contents. All processes must call this: each has random numbers of its own."""
        return {**self.description, **network.state_dict(), **self.latest}

    def _save_last(self, network: AbstractNetwork, contents: dict[str, Any]) -> None:
        """Write last.pt. Keep the one before as previous.pt, in case a disk damages the newer."""
        if distributed.is_main():
            keep_copy(self.folder / LAST, self.folder / PREVIOUS)
            save_checkpoint(self.folder / LAST, contents)
            logger.info("iteration %d: %s written", network.iteration, LAST)
        self.saved_at = time.monotonic()

    def _candidates(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> list[tuple[str, float]]:
        return [(name, metrics[metric_key(self.monitor, name)]) for name in network.valid_predictions]

    def state_dict(self) -> dict[str, Any]:
        """Return the best value with its iteration and weights, and the last validation."""
        return {
            "best": self.best,
            "best_iteration": self.best_iteration,
            "best_weights": self.best_weights,
            "latest": self.latest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an interrupted run's best value."""
        self.best = state["best"]
        self.best_iteration = state["best_iteration"]
        self.best_weights = state["best_weights"]
        self.latest = state["latest"]
