"""Facts that timm's models tell: the head's parameters, each parameter's layer, and those that never decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def heads_of(model: nn.Module) -> Sequence[nn.Module]:
    """Return the heads that ``model.get_classifier()`` gives: distilled models have two."""
    found = model.get_classifier()
    return found if isinstance(found, (list, tuple)) else [found]


def has_own_head(model: nn.Module) -> bool:
    """Whether the model is the user's own, which may make logits of more than its linear layer; timm's do not."""
    return not type(model).__module__.startswith("timm.")


def head_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of ``model.get_classifier()``. UsageError without that method."""
    if not hasattr(model, "get_classifier"):
        raise UsageError(f"--optim_head_factor: {type(model).__name__} doesn't tell which part is its head")
    inside = {id(parameter) for head in heads_of(model) for parameter in head.parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in inside)


def start_head(model: nn.Module, logits: Sequence[float]) -> None:
    """Let a timm model give ``logits`` (C,) for every picture until it is trained: biases so, the head's weights 0.

    Lin et al., "Focal Loss for Dense Object Detection", 2017, section 4.1: a bias at the labels' prevalence spares the
    first updates of learning it. Their weights are nearly 0. A model of the user's own (see :func:`has_own_head`) is
    left as its author made it.
    """
    import torch
    from torch import nn

    if has_own_head(model):
        return
    for layer in (module for head in heads_of(model) for module in head.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None and len(layer.bias) == len(logits):
            nn.init.zeros_(layer.weight)
            with torch.no_grad():
                layer.bias.copy_(torch.as_tensor(logits))


def layer_indices(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer by name, from timm's groups: 0 for the stem, the highest for the head.

    Raises UsageError for a model without timm's ``group_matcher``.
    """
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        raise UsageError(f"{type(model).__name__} doesn't tell its layers, which layer decay and freezing need")
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)


def undecayed_names(model: nn.Module) -> frozenset[str]:
    """Return the names of parameters that the model itself exempts from weight decay."""
    return frozenset(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else frozenset()
