"""A model with a head of your own: the logit of `any` is never below the highest of the five kinds of hemorrhage.

python train.py --net_model=examples.model.resnet10t_any
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn.functional import softplus


class AnyResNet(ResNet):
    """A ResNet for the labels of ``rsna_dataset.LABELS``, of which `any` is the last."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return embeddings (N, F), or logits (N, 6)."""
        found = super().forward_head(x, pre_logits)
        if pre_logits:
            return found
        kinds, more = found[:, :-1], found[:, -1:]
        return torch.cat([kinds, kinds.amax(dim=1, keepdim=True) + softplus(more)], dim=1)


@register_model
def resnet10t_any(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build the model like timm's ResNet-10-T; ``options`` are those of ``timm.create_model``."""
    layers = {"layers": (1, 1, 1, 1), "stem_width": 32, "stem_type": "deep_tiered", "avg_down": True}
    return build_model_with_cfg(AnyResNet, "resnet10t", pretrained, block=BasicBlock, **layers, **options)
