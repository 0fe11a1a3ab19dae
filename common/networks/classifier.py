"""Multi-label classification of images: weighted log loss on logits, pooled metric."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.datasets.batch import Batch
from common.metrics import WeightedLogLoss, probabilities
from common.networks.network import AbstractNetwork, Predictions, StepOutput, Training


class ClassifierNetwork(AbstractNetwork):
    """An image classifier with one logit per class, trained by the weighted multi-label log loss."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        class_names: Sequence[str],
        class_weights: Sequence[float],
        amp_dtype: torch.dtype | None = None,
        training: Training | None = None,
    ) -> None:
        """``class_weights`` are relative: loss and metric divide by their sum."""
        super().__init__(model, device, amp_dtype, training)
        self.class_names = tuple(class_names)
        self.class_weights = tuple(class_weights)
        weights = torch.tensor(self.class_weights, dtype=torch.float64, device=device)
        self.loss_weights = (weights / weights.sum()).float()

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the weighted log loss of ``batch.inputs["image"]`` (B, C, H, W) against ``batch.target`` (B, K)."""
        logits = model(batch.inputs["image"])
        with torch.autocast(self.device.type, enabled=False):
            loss = weighted_log_loss(logits.float(), batch.target, self.loss_weights)
        return StepOutput(loss, logits, batch.target, batch.image_id)

    def prediction_step(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (B, classes) of ``batch.inputs["image"]``."""
        return model(batch.inputs["image"])

    def compute_metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``weighted_log_loss`` and ``log_loss/<class>`` over all images, in float64."""
        metric = WeightedLogLoss(self.class_names, self.class_weights)
        metric.update(probabilities(predictions.logits), predictions.targets, predictions.image_ids)
        return metric.compute()


def weighted_log_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over images of the weighted sum over classes of the binary cross entropy.

    ``logits`` and ``targets`` are (N, C) float32, ``weights`` (C,) sums to 1; the result is a scalar.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * weights).sum(dim=1).mean()
