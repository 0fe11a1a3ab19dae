"""Facts that timm's models tell: the head's parameters, each parameter's layer, and those that never decay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


def head_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of ``model.get_classifier()``. UsageError without that method."""
    if not hasattr(model, "get_classifier"):
        raise UsageError(f"--optim_head_factor: {type(model).__name__} doesn't tell which part is its head")
    found = model.get_classifier()
    # Distilled models return two heads as a tuple.
    heads = found if isinstance(found, (list, tuple)) else [found]
    inside = {id(parameter) for head in heads for parameter in head.parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in inside)


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
