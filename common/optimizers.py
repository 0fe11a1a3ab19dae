"""Optimizers by name: one table, a row for each. A new optimizer is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.errors import UsageError, nearest

ParameterGroups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerRow:
    """One optimizer: its name on the command line, what it is, and how it is built from groups and a learning rate."""

    name: str
    summary: str
    build: Callable[[ParameterGroups, float], torch.optim.Optimizer]


def build_sgd(groups: ParameterGroups, lr: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9."""
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def build_adam(groups: ParameterGroups, lr: float) -> torch.optim.Optimizer:
    """Adam; weight decay is added to the gradient (L2)."""
    return torch.optim.Adam(groups, lr=lr)


def build_adamw(groups: ParameterGroups, lr: float) -> torch.optim.Optimizer:
    """AdamW; weight decay is taken from the weights, apart from the gradient."""
    return torch.optim.AdamW(groups, lr=lr)


OPTIMIZERS: dict[str, OptimizerRow] = {
    row.name: row
    for row in (
        OptimizerRow("sgd", "SGD, Nesterov momentum 0.9", build_sgd),
        OptimizerRow("adam", "Adam, weight decay inside the gradient", build_adam),
        OptimizerRow("adamw", "AdamW, decoupled weight decay", build_adamw),
    )
}


def parameter_groups(model: nn.Module, weight_decay: float) -> ParameterGroups:
    """Return the model's trainable parameters as one or two groups: those that decay and those that don't.

    Vectors and scalars (biases, scale and shift of norms) don't decay: pulling them to zero regularizes nothing and
    shrinks the activations. It is the rule of timm and of most published recipes. With a decay of 0 the groups still
    stand apart, so that an optimizer's saved state fits whatever the decay was. An empty group is left out.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    plain = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Build the optimizer called ``name`` over the trainable parameters of ``model``.

    Raises UsageError for a name that the table doesn't hold, and ValueError where no parameter is trainable.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"--optim={name}: unknown; choose from {', '.join(OPTIMIZERS)}{nearest(name, OPTIMIZERS)}")
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise ValueError("the model has no trainable parameter")
    return OPTIMIZERS[name].build(groups, lr)
