"""Multi-label classification of images: weighted log loss on logits, pooled metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.datasets.batch import Batch
from common.evaluation.metrics import WeightedLogLoss, probabilities
from common.networks.network import AbstractNetwork, Predictions, StepOutput, Training
from common.training.losses import build_loss


class ClassifierNetwork(AbstractNetwork):
    """A classifier with one logit per class, trained by the weighted multi-label log loss.

    ``inputs``: names of what the model takes of a batch's inputs, in the order of its arguments.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        class_names: Sequence[str],
        class_weights: Sequence[float],
        amp_dtype: torch.dtype | None = None,
        training: Training | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """``class_weights`` are relative: the metric divides by their sum.

        ``loss``: (logits (N, C) float32, targets (N, C)) → scalar, see common/training/losses.py;
        None: the metric as a loss.
        """
        super().__init__(model, device, amp_dtype, training)
        self.class_names = tuple(class_names)
        self.class_weights = tuple(class_weights)
        self.loss = loss or build_loss("bce", {}, self.class_weights, device)

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the training loss of a batch's inputs against ``batch.target`` (B, K)."""
        logits = model(*self.inputs_of(batch))
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(logits.float(), batch.target)
        return StepOutput(loss, logits, batch.target, batch.image_id)

    def prediction_step(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (B, classes) of a batch's inputs."""
        return model(*self.inputs_of(batch))

    def inputs_of(self, batch: Batch) -> tuple[Any, ...]:
        """Return what the model takes of a batch."""
        return tuple(batch.inputs[name] for name in self.inputs)

    def compute_metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``weighted_log_loss`` and ``log_loss/<class>`` over all images, in float64."""
        metric = WeightedLogLoss(self.class_names, self.class_weights)
        metric.update(probabilities(predictions.logits), predictions.targets, predictions.image_ids)
        return metric.compute()
