"""A loss of one's own, named by its path."""

from __future__ import annotations

import math

import pytest
import torch

from common.cli.arguments import parse_args
from common.errors import UsageError
from common.training.losses import build_loss
from config import TrainConfig

NAME = "examples.loss.ASYMMETRIC"


def test_an_own_loss_is_built_with_the_options_that_it_knows() -> None:
    assert parse_args(TrainConfig, [f"--loss={NAME}"]).loss == NAME
    loss = build_loss(NAME, {"loss_label_weights": (1.0, 3.0)}, (1.0, 1.0))
    logits = torch.tensor([[0.4, -1.2]], requires_grad=True)
    found = loss(logits, torch.tensor([[1.0, 0.0]]))
    negative = 1 / (1 + math.exp(1.2)) - 0.05
    expected = (math.log(1 + math.exp(-0.4)) - 3 * negative**4 * math.log(1 - negative)) / 4
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert logits.grad.isfinite().all()
    with pytest.raises(UsageError, match=r"--loss_gamma: --loss=asymmetric doesn't know it"):
        build_loss(NAME, {"loss_gamma": 2.0}, (1.0, 1.0))
