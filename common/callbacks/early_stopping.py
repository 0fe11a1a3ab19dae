"""Ends a run whose validation metric has stopped falling."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.callbacks.callback import Callback
from common.checkpoint import metric_key

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Stops after ``patience`` validations in a row that did not improve the best value by more than ``delta``.

    The best of the trained weights and their averages counts, as for best.pt.
    """

    def __init__(self, monitor: str, patience: int, delta: float = 0.0) -> None:
        """``monitor`` is a metric's key; lower values are better. ``delta`` has the metric's unit."""
        self.monitor = monitor
        self.patience = patience
        self.delta = delta
        self.best = math.inf
        self.waited = 0

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Count the validation. When the patience ends, set ``network.should_stop``."""
        value = min(metrics[metric_key(self.monitor, name)] for name in network.valid_predictions)
        if value < self.best - self.delta:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            network.should_stop = True
            logger.warning(
                "stopped at iteration %d: %s was not below %.5f for %d validations (--tr_early_stop)",
                network.iteration,
                self.monitor,
                self.best - self.delta,
                self.waited,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the number of validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from an interrupted run's state."""
        self.best, self.waited = state["best"], state["waited"]
