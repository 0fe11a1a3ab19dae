"""``last.pt`` at each validation, ``best.pt`` at the best one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.callbacks.callback import Callback
from common.checkpoint import REQUIRED_KEYS, metric_key, save_checkpoint

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, Predictions

logger = logging.getLogger(__name__)


class ModelCheckpoint(Callback):
    """Writes the checkpoints of a run; stands last in the list of callbacks, so that it saves the others' state.

    ``best.pt`` follows the lowest ``monitor``, of the trained weights or of an average of them; ``best_weights`` says
    which. At each new best ``on_best`` is called first (it writes the predictions that belong to it). Both files hold
    ``description`` (config, transforms, class names, …), which is what predict and evaluate rebuild the model from.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        description: Mapping[str, Any],
        on_best: Callable[[Predictions], None],
    ) -> None:
        """``monitor`` is a metric's key, the lower the better, such as ``valid/weighted_log_loss``."""
        self.folder = folder
        self.monitor = monitor
        self.description = dict(description)
        self.on_best = on_best
        self.best = math.inf
        self.best_iteration = 0
        self.best_weights = ""

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Save the state after this validation."""
        weights, value = min(self._candidates(network, metrics), key=lambda candidate: candidate[1])
        improved = value < self.best
        if improved:
            self.best, self.best_iteration, self.best_weights = value, network.iteration, weights
        contents = {**self.description, **network.state_dict(), "metrics": dict(metrics), "best_weights": weights}
        if improved:
            self.on_best(network.valid_predictions[weights])
            best = {key: value for key, value in contents.items() if key in REQUIRED_KEYS}
            save_checkpoint(self.folder / "best.pt", best)
        save_checkpoint(self.folder / "last.pt", contents)
        logger.info("iteration %d: last.pt%s written", network.iteration, " and best.pt" if improved else "")

    def _candidates(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> list[tuple[str, float]]:
        return [(name, metrics[metric_key(self.monitor, name)]) for name in network.valid_predictions]

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far and its iteration."""
        return {"best": self.best, "best_iteration": self.best_iteration, "best_weights": self.best_weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on comparing with an interrupted run's best."""
        self.best = state["best"]
        self.best_iteration = state["best_iteration"]
        self.best_weights = state["best_weights"]
