"""Freezes parts of a model: their weights and the running statistics of their norms stay as they are."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UsageError
from common.models.layers import head_parameters, layer_indices

FREEZE_FORMS = "none, norms, backbone, or how many layers from the stem on"


def freeze(model: nn.Module, what: str) -> None:
    """Freeze a part of ``model``: ``norms`` (batch norms), ``backbone`` (all but the head), or the first N layers.

    timm's ``group_matcher`` defines the layers, 0 is the stem. Raises UsageError for other words, for norms that the
    model doesn't have, and for more layers than it has before its head.
    """
    if what == "none":
        return
    if what == "norms":
        frozen = {
            f"{prefix}.{name}"
            for prefix, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            for name, _ in module.named_parameters(recurse=False)
        }
        if not frozen:
            raise UsageError("--net_freeze=norms: the model has no batch norms")
    elif what == "backbone":
        head = head_parameters(model)
        frozen = {name for name, _ in model.named_parameters() if name not in head}
    elif what.isdecimal():
        layers = layer_indices(model)
        count = max(layers.values())
        if int(what) > count:
            raise UsageError(f"--net_freeze={what}: the model has {count} layers before its head")
        frozen = {name for name, layer in layers.items() if layer < int(what)}
    else:
        raise UsageError(f"--net_freeze={what}: choose {FREEZE_FORMS}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def train_mode(model: nn.Module) -> None:
    """Put ``model`` into training mode, but batch norms with frozen weights into evaluation mode."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and own and not any(parameter.requires_grad for parameter in own):
            module.eval()
