"""Grad-CAM: the places of a picture that raised a class in a network's last feature map (Selvaraju et al. 2017)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from common.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def grad_cam(model: nn.Module, pictures: Tensor, class_index: int) -> Tensor:
    """Return the maps (B, h, w) float32 of timm's ``model`` for ``pictures`` (B, C, H, W): ReLU(Σ a_k F_k).

    F_k are the channels of the last feature map, of h × w cells, and a_k the mean over the cells of the derivative of
    the class's logit by F_k (equations 1 and 2). Values have the logit's unit and are not scaled. The model runs in
    evaluation mode; its weights and their gradients don't change. Under autocast the features may be of another type;
    the slopes are always float32. UsageError if the features are not a map.
    """
    if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
        raise UsageError(f"{type(model).__name__}: gives no features to its head that Grad-CAM could look at")
    with _undisturbed(model), torch.enable_grad():
        with torch.no_grad():  # gradients end at the features, so that nothing before them needs to be kept
            features = model.forward_features(pictures).float()
        features.requires_grad_()
        logits = model.forward_head(features)
        (slopes,) = torch.autograd.grad(logits[:, class_index].sum(), features)
    feature_map, slope_map = (_channels_first(model, tensor) for tensor in (features.detach(), slopes))
    weights = slope_map.mean(dim=(2, 3), keepdim=True)
    return (weights * feature_map).sum(dim=1).relu()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _channels_first(model: nn.Module, features: Tensor) -> Tensor:
    """Return features as (B, K, h, w), from maps, maps with channels last, or tokens (without class and registers)."""
    if features.ndim == 3:
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", (0, 0))
        tokens = features[:, getattr(model, "num_prefix_tokens", 0) :]
        if tokens.shape[1] != grid[0] * grid[1]:
            raise UsageError(f"{type(model).__name__}: its last features are no map, so that there is no Grad-CAM")
        return tokens.reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)
    if features.ndim != 4:
        raise UsageError(f"{type(model).__name__}: its last features are no map, so that there is no Grad-CAM")
    last = features.shape[1] != model.num_features and features.shape[3] == model.num_features
    return features.permute(0, 3, 1, 2) if last else features
