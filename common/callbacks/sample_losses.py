"""Gives a hard-example sampler the loss of each image that was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from common.callbacks.callback import Callback

if TYPE_CHECKING:
    from common.networks.network import AbstractNetwork, StepOutput


class SampleLosses(Callback):
    """Gives the training sampler each image's binary cross entropy, with the metric's class weights.

    This is the metric's loss, not the training's, so that "hard" means the same for every training loss. It is the mean
    over the labels that are known, NaN for an image without any.
    """

    def __init__(self, class_weights: torch.Tensor) -> None:
        """``class_weights`` (C,) sum to 1."""
        self.class_weights = class_weights

    def on_train_begin(self, network: AbstractNetwork) -> None:
        """Move the weights to the device once. A copy in each iteration would make the host wait."""
        self.class_weights = self.class_weights.to(network.device)

    def on_iteration_end(self, network: AbstractNetwork, output: StepOutput) -> None:
        """Hand over the losses without waiting for the device."""
        with torch.no_grad():
            losses = functional.binary_cross_entropy_with_logits(
                output.logits.float(), output.targets.float(), reduction="none"
            )
            known = ~output.targets.isnan()
            share = (known * self.class_weights).sum(dim=1) / self.class_weights.sum()
            each = (losses.where(known, 0) * self.class_weights).sum(dim=1) / share
        network.training.train_loader.sampler.observe(output.image_ids, each)
