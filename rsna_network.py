"""The network of the RSNA 2019 task: six labels, `any` counted twice, predictions as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from common.datasets.batch import Batch
from common.evaluation.metrics import WeightedLogLoss, probabilities
from common.networks.network import AbstractNetwork, Predictions, StepOutput, Training
from common.training.losses import build_loss
from rsna_dataset import LABEL_WEIGHTS, LABELS, METRIC

MONITOR = f"valid/{METRIC}"


class RSNANetwork(AbstractNetwork):
    """A classifier of the five kinds of hemorrhage and `any`, trained and scored by the weighted log loss.

    ``inputs`` names the batch's inputs that the model takes, in the order of its arguments. ``class_weights`` are
    relative: the metric divides by their sum.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    class_names: ClassVar[tuple[str, ...]] = LABELS
    class_weights: ClassVar[tuple[float, ...]] = LABEL_WEIGHTS

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        training: Training | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """``model`` gives logits (N, C) in the order of ``class_names``. For the rest see :class:`AbstractNetwork`.

        ``loss`` maps logits (N, C) float32 and targets (N, C) to a scalar; see common/training/losses.py. None: the
        metric as a loss.
        """
        super().__init__(model, device, amp_dtype, training)
        self.loss = loss or build_loss("bce", {}, self.class_weights, device)

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Compute the loss of a batch against ``batch.target`` (B, K), in float32 under autocast too."""
        logits = model(*self.inputs_of(batch))
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(logits.float(), batch.target)
        return StepOutput(loss, logits, batch.target, batch.image_id)

    def prediction_step(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the logits (B, K) of a batch."""
        return model(*self.inputs_of(batch))

    def inputs_of(self, batch: Batch) -> tuple[Any, ...]:
        """Return the model's arguments from a batch."""
        return tuple(batch.inputs[name] for name in self.inputs)

    def compute_metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``weighted_log_loss`` and ``log_loss/<class>`` over all labels that are there, in float64."""
        metric = WeightedLogLoss(self.class_names, self.class_weights)
        logits = predictions.logits[:, : len(self.class_names)]
        metric.update(probabilities(logits), predictions.targets, predictions.image_ids)
        return metric.compute()


def prediction_frame(predictions: Predictions) -> pd.DataFrame:
    """Return probabilities (float64): one row for each image (index ``id``), one column for each label."""
    index = pd.Index(predictions.image_ids, name="id")
    return pd.DataFrame(probabilities(predictions.logits[:, : len(LABELS)]), index=index, columns=list(LABELS))


def pooled_metrics(frame: pd.DataFrame, targets: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of training for probabilities whose rows stand as in ``targets``."""
    metric = WeightedLogLoss(LABELS, LABEL_WEIGHTS)
    metric.update(frame[list(LABELS)].to_numpy(), targets[list(LABELS)].to_numpy(), list(frame.index))
    return metric.compute()
