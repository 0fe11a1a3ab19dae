"""A loss of your own: the asymmetric loss, which ignores easy negatives (Ridnik et al., ICCV 2021).

python train.py --loss=examples.loss.ASYMMETRIC
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from common.training.losses import ElementLoss, LossRow

MARGIN, POWER = 0.05, 4  # probability below which a negative costs nothing; how fast easy negatives fade


def build_asymmetric(values: Mapping[str, Any], labels: int, device: torch.device | None) -> ElementLoss:
    """Return the loss of each label: logits (N, C) and targets (N, C) to losses (N, C)."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        shifted = (logits.sigmoid() - MARGIN).clamp_min(0)
        return -targets * logsigmoid(logits) - (1 - targets) * shifted**POWER * torch.log1p(-shifted)

    return loss


ASYMMETRIC = LossRow(
    "asymmetric",
    "asymmetric loss, which ignores easy negatives",
    build_asymmetric,
    parameters={"loss_label_weights": None},  # the options that it knows, with their defaults
)
