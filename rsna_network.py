"""The network of the RSNA 2019 task: six labels, `any` counted twice, predictions as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from common.datasets.batch import Batch
from common.evaluation.metrics import WeightedLogLoss, probabilities
from common.models.sequence_layers import SequenceOutput, in_series, of_slices
from common.networks.classifier import ClassifierNetwork
from common.networks.network import Predictions, StepOutput, Training
from common.training import distributed
from rsna_dataset import LABEL_WEIGHTS, LABELS, METRIC

MONITOR = f"valid/{METRIC}"
# What a sequence model takes, in its order, and a network over whole series of pictures; the lengths follow.
SEQUENCE_INPUTS = ("features", "logits", "position_mm", "mask")
STUDY_INPUTS = ("image", "position_mm", "mask", "places")


class RSNANetwork(ClassifierNetwork):
    """A classifier of the five kinds of hemorrhage and `any`, scored by the competition's weighted log loss."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        training: Training | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        """See :class:`AbstractNetwork`; ``model`` gives six logits in the order of ``rsna_dataset.LABELS``."""
        super().__init__(model, device, LABELS, LABEL_WEIGHTS, amp_dtype, training, loss)


class RSNASequenceNetwork(RSNANetwork):
    """The same over series of slices: each slice's logits, and one of the study beside them."""

    inputs: ClassVar[tuple[str, ...]] = SEQUENCE_INPUTS

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        training: Training | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        study_weight: float = 0.0,
    ) -> None:
        """``model``: :class:`common.models.sequence_layers.SequenceModel`; ``study_weight`` of the studies' loss."""
        super().__init__(model, device, amp_dtype, training, loss)
        self.study_weight = study_weight

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Return the loss of the batch's slices plus that of its series, whose labels are their slices' highest."""
        output, places = model(*self.inputs_of(batch)), batch.inputs["places"]
        logits = of_slices(output.slices, places)
        with torch.autocast(self.device.type, enabled=False):
            loss = batch.share * self.loss(logits.float(), batch.target)
            # Where gradients are exchanged every weight must have one, also those that a weight of 0 leaves alone.
            if self.study_weight or distributed.world_size() > 1:
                targets = in_series(batch.target, places, output.slices.shape[:2]).amax(dim=1)
                loss = loss + self.study_weight * self.loss(output.study.float(), targets)
        return StepOutput(loss, logits, batch.target, batch.image_id)

    def prediction_step(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits (N, 6) of the batch's slices, series after series."""
        return of_slices(model(*self.inputs_of(batch)).slices, batch.inputs["places"])

    def inputs_of(self, batch: Batch) -> tuple[Tensor | tuple[int, ...], ...]:
        """Return what the model takes of a batch, in its order."""
        return *(batch.inputs[name] for name in self.inputs), batch.lengths

    def predict_with_studies(self, batches: Iterable[Batch]) -> tuple[Predictions, np.ndarray]:
        """Return the slices' predictions, as :meth:`predict`, and the logits (S, 6) of all series, from one pass."""
        parts: list[Tensor] = []

        def keep(model: nn.Module, inputs: object, output: SequenceOutput) -> None:
            parts.append(output.study.float())

        with self.model.register_forward_hook(keep):
            predictions = self.predict(batches)
        return predictions, torch.cat(parts).cpu().numpy()


class RSNAStudyNetwork(RSNASequenceNetwork):
    """The same from the pictures of whole series: :class:`common.models.study_layers.StudyNetwork`."""

    inputs: ClassVar[tuple[str, ...]] = STUDY_INPUTS


def prediction_frame(predictions: Predictions) -> pd.DataFrame:
    """Return probabilities (float64) with a row for each image (index ``id``) and a column for each label."""
    index = pd.Index(predictions.image_ids, name="id")
    return pd.DataFrame(probabilities(predictions.logits), index=index, columns=list(LABELS))


def pooled_metrics(frame: pd.DataFrame, targets: pd.DataFrame) -> dict[str, float]:
    """Return the training's metrics of predictions, rows as in ``targets``."""
    metric = WeightedLogLoss(LABELS, LABEL_WEIGHTS)
    metric.update(frame[list(LABELS)].to_numpy(), targets[list(LABELS)].to_numpy(), list(frame.index))
    return metric.compute()
