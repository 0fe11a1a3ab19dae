"""The layers of common/models/pooling.py, and replacing a model's pooling by one of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UsageError


class GlobalAverage(nn.Module):
    """(N, C, H, W) → (N, C): the mean."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over all places."""
        return x.mean(dim=(2, 3))


class GlobalMaximum(nn.Module):
    """(N, C, H, W) → (N, C): the maximum."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the maximum over all places."""
        return x.amax(dim=(2, 3))


class GeneralizedMean(nn.Module):
    """(N, C, H, W) → (N, C): mean(x^p)^(1/p) with a learnt p.

    Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018. Negative values count as
    ``eps``. Computed in float32, since powers overflow in half precision.
    """

    def __init__(self, power: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the generalized mean over all places."""
        with torch.autocast(x.device.type, enabled=False):
            return x.float().clamp(min=self.eps).pow(self.power).mean(dim=(2, 3)).pow(1 / self.power).to(x.dtype)


class AttentionMean(nn.Module):
    """(N, C, H, W) → (N, C): Σ softmax(w · x) x over the places, as in attention-based multiple instance learning.

    All scores start at 0, which makes the plain mean.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted mean over all places."""
        weights = functional.softmax(self.score(x).flatten(2), dim=2)
        return (x.flatten(2) * weights).sum(dim=2)


class PoolLike(nn.Module):
    """A pooling (N, C, H, W) → (N, C) with the input and output shapes of the layer that it replaces."""

    def __init__(self, pool: nn.Module, channels_last: bool, flatten: bool) -> None:
        """``channels_last``: (N, H, W, C) in and, without ``flatten``, (N, 1, 1, C) out instead of (N, C, 1, 1)."""
        super().__init__()
        self.pool = pool
        self.channels_last = channels_last
        self.flatten = flatten
        self.pool_type = "own"

    def is_identity(self) -> bool:
        """False. timm asks its own layer this."""
        return False

    def feat_mult(self) -> int:
        """1: the width stays."""
        return 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled features in the shape of the replaced layer."""
        pooled = self.pool(x.permute(0, 3, 1, 2) if self.channels_last else x)
        if self.flatten:
            return pooled
        return pooled[:, None, None, :] if self.channels_last else pooled[:, :, None, None]


def replace_pool(
    model: nn.Module, name: str, pool: str, build: Callable[[int], nn.Module], in_channels: int, image_size: int
) -> None:
    """Put the pooling called ``pool`` into ``model`` (timm's ``name``). UsageError if it has no pooling layer.

    ``build`` makes the pooling (N, C, H, W) → (N, C) for C channels.
    """
    for place in ("global_pool", "head.global_pool"):
        try:
            old = model.get_submodule(place)
        except AttributeError:
            continue
        if isinstance(old, SelectAdaptivePool2d) and not old.is_identity():
            break
    else:
        raise UsageError(f"--net_pool={pool}: {name} has no pooling layer that could be replaced; leave --net_pool out")
    shapes = _shapes(model, old, in_channels, image_size)
    channels = shapes[1][1] if len(shapes[1]) == 2 else max(shapes[1][1:])
    channels_last = shapes[0][1] != channels
    parent, _, leaf = place.rpartition(".")
    new = PoolLike(build(channels), channels_last, flatten=len(shapes[1]) == 2)
    setattr(model.get_submodule(parent), leaf, new)


def _shapes(model: nn.Module, layer: nn.Module, in_channels: int, image_size: int) -> list[torch.Size]:
    """Return the input and output shapes of ``layer`` for one empty image."""
    shapes: list[torch.Size] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: shapes.extend([inputs[0].shape, output.shape]))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, in_channels, image_size, image_size))
    finally:
        handle.remove()
        model.train(was_training)
    return shapes
