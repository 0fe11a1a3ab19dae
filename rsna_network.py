"""The network of the RSNA 2019 task: six labels, `any` counted twice, predictions as a table."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from common.evaluation.metrics import WeightedLogLoss, probabilities
from common.networks.classifier import ClassifierNetwork
from common.networks.network import Predictions, Training
from rsna_dataset import LABEL_WEIGHTS, LABELS, METRIC

MONITOR = f"valid/{METRIC}"


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


def prediction_frame(predictions: Predictions) -> pd.DataFrame:
    """Return probabilities (float64) with a row for each image (index ``id``) and a column for each label."""
    index = pd.Index(predictions.image_ids, name="id")
    return pd.DataFrame(probabilities(predictions.logits), index=index, columns=list(LABELS))


def pooled_metrics(frame: pd.DataFrame, targets: pd.DataFrame) -> dict[str, float]:
    """Return the training's metrics of predictions, rows as in ``targets``."""
    metric = WeightedLogLoss(LABELS, LABEL_WEIGHTS)
    metric.update(frame[list(LABELS)].to_numpy(), targets[list(LABELS)].to_numpy(), list(frame.index))
    return metric.compute()
