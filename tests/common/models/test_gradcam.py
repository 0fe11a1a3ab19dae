"""Tests of common/models/gradcam.py: maps worked out by hand, and the kinds of features that timm's models have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import UsageError
from common.models.backbone import create_model
from common.models.gradcam import grad_cam


class ByHand(nn.Module):
    """The picture is its own feature map, and a logit a weighted sum of the channels' means."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[4.0, -8.0], [0.0, 2.0]])

    def forward_features(self, x):
        return x

    def forward_head(self, x):
        return self.head(x.mean(dim=(2, 3)))


def test_the_map_worked_out_by_hand():
    pictures = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]], [[0.0, 2.0], [1.0, -1.0]]]])
    # The derivative of logit 0 by a cell is 4 / 4 in channel 0 and -8 / 4 in channel 1: 1 F_0 - 2 F_1, not below 0.
    assert grad_cam(ByHand(), pictures, 0).tolist() == [[[1.0, 0.0], [1.0, 2.0]]]
    assert grad_cam(ByHand(), pictures, 1).tolist() == [[[0.0, 1.0], [0.5, 0.0]]]


def test_pictures_of_a_batch_do_not_disturb_each_other():
    model = create_model("resnet10t", 6, 3).eval()
    pictures = torch.randn(3, 3, 64, 64)
    together = grad_cam(model, pictures, 5)
    torch.testing.assert_close(together[1:2], grad_cam(model, pictures[1:2], 5), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "cells"),
    [("resnet10t", 64, (2, 2)), ("vit_tiny_patch16_224", 64, (4, 4)), ("swin_tiny_patch4_window7_224", 224, (7, 7))],
)
def test_maps_tokens_and_channels_last_give_a_map(name, size, cells):
    model = create_model(name, 6, 3, image_size=size)
    found = grad_cam(model, torch.randn(1, 3, size, size), 0)
    assert found.shape == (1, *cells)
    assert found.isfinite().all()
    assert (found >= 0).all()


def test_the_model_is_left_as_it_was():
    model = create_model("resnet10t", 6, 3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grad_cam(model, torch.randn(2, 3, 32, 32), 0)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_a_map_is_refused_by_name():
    with pytest.raises(UsageError, match="Linear"):
        grad_cam(nn.Linear(2, 2), torch.zeros(1, 2), 0)


def test_the_map_in_half_precision_is_that_of_float32_but_for_rounding():
    torch.manual_seed(0)
    model = create_model("resnet10t", 6, 3).eval()
    pictures = torch.randn(2, 3, 64, 64)
    exact = grad_cam(model, pictures, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = grad_cam(model, pictures, 5)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)  # it did compute in the other precision
    assert (rounded - exact).abs().max() < 0.05 * exact.max()
