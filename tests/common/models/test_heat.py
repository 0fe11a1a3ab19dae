"""Tests of common/models/heat.py: maps worked out by hand, and the kinds of features that timm's models have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import UsageError
from common.models.backbone import create_model
from common.models.heat import METHOD, METHODS, heat


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


PICTURES = torch.tensor([[[[1.0, 2.0], [3.0, 0.0]], [[0.0, 2.0], [1.0, -1.0]]]])


@pytest.mark.parametrize("method", METHODS)
def test_the_map_worked_out_by_hand(method):
    # The derivative of logit 0 by a cell is 4 / 4 in channel 0 and -8 / 4 in channel 1: 1 F_0 - 2 F_1, not below 0.
    # LayerCAM leaves the channel of negative slopes out. All slopes of a channel are equal: HiResCAM is Grad-CAM.
    expected = [[[1.0, 2.0], [3.0, 0.0]]] if method == "LayerCAM" else [[[1.0, 0.0], [1.0, 2.0]]]
    assert heat(ByHand(), PICTURES, 0, method, fewest=0).tolist() == expected
    assert heat(ByHand(), PICTURES, 1, method, fewest=0).tolist() == [[[0.0, 1.0], [0.5, 0.0]]]


def test_methods_differ_where_the_slopes_of_a_channel_differ():
    features = torch.tensor([[[[1.0, 2.0], [1.0, 1.0]]]])
    slopes = torch.tensor([[[[3.0, -1.0], [0.0, 2.0]]]])
    assert METHODS["Grad-CAM"](features, slopes).tolist() == [[[1.0, 2.0], [1.0, 1.0]]]
    assert METHODS["HiResCAM"](features, slopes).tolist() == [[[3.0, 0.0], [0.0, 2.0]]]
    two = torch.cat([features, features], dim=1), torch.cat([slopes, -slopes], dim=1)
    assert METHODS["HiResCAM"](*two).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
    assert METHODS["LayerCAM"](*two).tolist() == [[[3.0, 2.0], [0.0, 2.0]]]


def test_pictures_of_a_batch_do_not_disturb_each_other():
    model = create_model("resnet10t", 6, 3).eval()
    pictures = torch.randn(3, 3, 64, 64)
    together = heat(model, pictures, 5)
    torch.testing.assert_close(together[1:2], heat(model, pictures[1:2], 5), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "cells", "last"),
    [
        ("resnet10t", 64, 32, 2),
        ("resnet10t", 96, 24, 3),
        ("resnet10t", 256, 32, 8),
        ("vit_tiny_patch16_224", 128, 8, 8),
        ("swin_tiny_patch4_window7_224", 224, 28, 7),
        ("convnext_atto", 64, 16, 2),
        ("efficientnet_b0", 64, 32, 2),
    ],
)
def test_the_map_is_the_deepest_that_is_fine_enough_or_the_finest_in_every_family_and_not_zero_everywhere(
    name, size, cells, last
):
    torch.manual_seed(0)
    model = create_model(name, 6, 3, image_size=size)
    pictures = torch.randn(2, 3, size, size)
    found = heat(model, pictures, 0)
    assert found.shape == (2, cells, cells)
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert found.max() > 0
    assert heat(model, pictures, 0, fewest=0).shape == (2, last, last)


def test_heat_of_an_inner_map_is_that_of_gradients_through_the_whole_network():
    """The oracle: timm's own intermediate features, and gradients of the network's plain forward pass."""
    model = create_model("resnet10t", 6, 3).eval()
    pictures = torch.randn(2, 3, 192, 192)
    kept = []
    hook = model.layer2.register_forward_hook(lambda _module, _given, output: kept.append(output))
    logits = model(pictures)
    hook.remove()
    (slopes,) = torch.autograd.grad(logits[:, 5].sum(), kept[0])
    expected = METHODS[METHOD](kept[0].detach(), slopes)
    torch.testing.assert_close(heat(model, pictures, 5), expected, rtol=1e-4, atol=1e-7)


def test_a_map_of_the_pictures_own_cells_is_gradient_times_input():
    model = create_model("resnet10t", 6, 3).eval()
    pictures = torch.randn(2, 3, 64, 64)
    seen = pictures.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(model(seen)[:, 5].sum(), seen)
    expected = (slopes * pictures).sum(dim=1).relu()
    torch.testing.assert_close(heat(model, pictures, 5, "HiResCAM", fewest=64), expected, rtol=1e-4, atol=1e-7)


def test_the_model_is_left_as_it_was():
    model = create_model("resnet10t", 6, 3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heat(model, torch.randn(2, 3, 64, 64), 0)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_a_model_without_a_map_is_refused_by_name():
    with pytest.raises(UsageError, match="Linear"):
        heat(nn.Linear(2, 2), torch.zeros(1, 2), 0)


def test_the_map_in_half_precision_is_that_of_float32_but_for_rounding():
    torch.manual_seed(0)
    model = create_model("resnet10t", 6, 3).eval()
    pictures = torch.randn(2, 3, 64, 64)
    exact = heat(model, pictures, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = heat(model, pictures, 5)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)  # it did compute in the other precision
    assert (rounded - exact).abs().max() < 0.1 * exact.max()
