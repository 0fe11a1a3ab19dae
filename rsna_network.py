"""The network of the RSNA 2019 task: six labels, `any` counted twice, predictions as a table."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from common.metrics import probabilities
from common.networks.classifier import ClassifierNetwork
from common.networks.network import Predictions, Training
from rsna_dataset import LABEL_WEIGHTS, LABELS

MONITOR = "valid/weighted_log_loss"


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
