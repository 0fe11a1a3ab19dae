"""What a model costs: parameters, floating-point operations and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from common.models.freezing import train_mode


@dataclass(frozen=True)
class ModelFacts:
    """Costs of a model for one float32 image.

    ``flops``: floating-point operations of a forward pass; a multiplication and an addition count as two.
    ``activation_bytes``: memory that a forward pass keeps for the backward pass.
    """

    parameters: int
    trainable: int
    flops: int
    weight_bytes: int
    activation_bytes: int

    def training_bytes(self, batch_size: int, moments: int, copies: int = 0) -> int:
        """Estimate the memory of training: weights, their averages, gradients, the optimizer's moments, activations."""
        share = self.trainable / max(self.parameters, 1)
        own = self.weight_bytes * (1 + copies + share * (1 + moments))
        return round(own + batch_size * self.activation_bytes)


def measure_model(model: nn.Module, *inputs: Tensor | Sequence[int]) -> ModelFacts:
    """Measure ``model`` by a forward pass of one sample, (1, C, H, W). Weights and random numbers stay as they are."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # no dropout draws a number, no norm takes statistics
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    try:
        # Hold the output until the count is done, so that no freed storage's address is used again.
        with torch.enable_grad(), counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.forward(*inputs)  # a call would first compile a compiled model for this one picture
        del output
    finally:
        for module, training in modes:
            module.training = training
    parameters = list(model.parameters())
    return ModelFacts(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        flops=counter.get_total_flops(),
        weight_bytes=sum(tensor.nbytes for tensor in (*parameters, *model.buffers())),
        activation_bytes=sum(kept.values()),
    )


@torch.no_grad()
def normalizes_single_values(model: nn.Module, picture: Tensor) -> bool:
    """Whether a trained batch norm gets one value per channel from ``picture`` (1, C, H, W), which it refuses.

    Weights, statistics, modes and random numbers stay as they are.
    """
    found: list[bool] = []
    modes = [(module, module.training) for module in model.modules()]
    train_mode(model)
    trained = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][:, 0].numel() == 1)) for norm in trained
    ]
    model.eval()
    try:
        model.forward(picture)  # a call may be compiled
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return any(found)
