"""What is done to a batch on the device that computes: the last, purely numerical part of a transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Finish(Protocol):
    """Turns a batch's inputs, which are on the device, into what the network sees; small, since each batch has it."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class WindowNormalize:
    """Windows, normalization and change of type in one multiplication, one addition and one clip.

    ``image_hu`` (B, K, H, W) int16 in Hounsfield units and ``windows`` (B, C, 2) float32 (centre and width in HU, drawn
    for each image) become ``image`` (B, K · C, H, W) float32, slice by slice, normalized by ``mean`` and ``std`` of
    pictures on 0..1 (a value each, or one for all). Equal to the window, then the normalization, to float32's rounding.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs with ``image`` in place of ``image_hu`` and ``windows``."""
        rest = {name: value for name, value in inputs.items() if name not in ("image_hu", "windows")}
        hu = inputs["image_hu"].unsqueeze(2)  # (B, K, 1, H, W)
        windows = inputs["windows"].double().unsqueeze(1)  # (B, 1, C, 2)
        slices, channels = hu.shape[1], windows.shape[2]
        center, width = windows.unbind(dim=-1)
        mean, std = (self._by_channel(values, slices, channels, hu.device) for values in (self.mean, self.std))
        factor = 1 / (width * std)
        offset = (0.5 - center / width - mean) / std
        image = torch.addcmul(_pixels(offset), hu.float(), _pixels(factor))
        image.clamp_(_pixels((0 - mean) / std), _pixels((1 - mean) / std))
        return {"image": image.flatten(1, 2), **rest}

    @staticmethod
    def _by_channel(values: tuple[float, ...], slices: int, channels: int, device: torch.device) -> Tensor:
        """Return (K or 1, C or 1): a value for each slice and channel, for each channel, or one."""
        column = torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)
        return column.reshape(slices, channels) if len(values) == slices * channels else column.reshape(1, -1)


def _pixels(values: Tensor) -> Tensor:
    """Make values by channel (…, K, C) broadcast over pixels (…, K, C, H, W), in float32."""
    return values.float()[..., None, None]
