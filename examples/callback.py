"""A callback of your own: at each validation it writes the norm of every layer's weights.

python train.py --tr_callbacks=examples.callback.WEIGHT_NORMS
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.callbacks.callback import Callback
from common.networks.network import AbstractNetwork
from rsna.training.callbacks import CallbackRow


class WeightNorms(Callback):
    """Writes a line of JSON for each validation: the iteration, the largest norm so far, and the norm of each layer."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.largest = 0.0

    def on_validation_end(self, network: AbstractNetwork, metrics: Mapping[str, float]) -> None:
        """Write a line with the weights' Euclidean norms."""
        norms = {name: float(torch.linalg.vector_norm(one)) for name, one in network.model.named_parameters()}
        self.largest = max(self.largest, *norms.values())
        with self.file.open("a", encoding="utf-8") as file:
            line = {"iteration": network.iteration, "largest": self.largest, "norms": norms}
            file.write(json.dumps(line) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves."""
        return {"largest": self.largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state when a run is resumed."""
        self.largest = state["largest"]


WEIGHT_NORMS = CallbackRow(
    "weight_norms", "norms of the weights", build=lambda run: WeightNorms(run.folder / "weight_norms.jsonl")
)
