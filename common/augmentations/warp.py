"""Warp pictures of any number of channels; OpenCV takes at most four at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from common.augmentations.base import GeometryTransform

Fill = float | tuple[float, ...]
Size = tuple[int, int]
Box = tuple[int, int, int, int]


def warp_affine(
    image: np.ndarray,
    matrix: np.ndarray,
    flags: int,
    border_mode: int,
    fill: Fill,
    size: Size | None = None,
    target: np.ndarray | None = None,
) -> np.ndarray:
    """Return ``image`` (H, W) or (H, W, C) moved by a 2 x 3 matrix, from source to target pixels (x, y).

    ``flags``: OpenCV's interpolation; with ``WARP_INVERSE_MAP`` the matrix goes from target to source. ``fill``: the
    value of a constant border, one number or one for each channel. ``size`` (height, width) of the result; None: that
    of ``image``. ``target``: memory for the result of at most four channels, None: new memory.
    """
    size = size or image.shape[:2]
    return _in_fours(
        image,
        fill,
        size,
        lambda part, value: cv2.warpAffine(
            part, matrix, size[::-1], dst=target, flags=flags, borderMode=border_mode, borderValue=value
        ),
    )


def remap(
    image: np.ndarray,
    map_x: np.ndarray,
    map_y: np.ndarray,
    interpolation: int,
    border_mode: int,
    fill: Fill,
    target: np.ndarray | None = None,
) -> np.ndarray:
    """Sample ``image`` at ``map_x``, ``map_y``, float32 (H, W); other arguments as for :func:`warp_affine`."""
    return _in_fours(
        image,
        fill,
        map_x.shape,
        lambda part, value: cv2.remap(
            part, map_x, map_y, interpolation, dst=target, borderMode=border_mode, borderValue=value
        ),
    )


def crop_resize(image: np.ndarray, box: Box, size: Size, interpolation: int) -> np.ndarray:
    """Return the part (top, left, height, width) of ``image`` (H, W) or (H, W, C), resized to ``size``."""
    top, left, rows, columns = box
    resized = cv2.resize(image[top : top + rows, left : left + columns], size[::-1], interpolation=interpolation)
    return resized.reshape(*size, *image.shape[2:])


def _in_fours(
    image: np.ndarray, fill: Fill, size: Size, warp: Callable[[np.ndarray, tuple[float, ...]], np.ndarray]
) -> np.ndarray:
    channels = 1 if image.ndim == 2 else image.shape[2]
    fills = np.broadcast_to(np.asarray(fill, dtype=float), channels).tolist()
    if channels <= 4:
        return warp(image, tuple(fills)).reshape(*size, *image.shape[2:])
    starts = range(0, channels, 4)
    parts = [warp(np.ascontiguousarray(image[..., c : c + 4]), tuple(fills[c : c + 4])) for c in starts]
    return np.concatenate([part.reshape(*size, -1) for part in parts], axis=2)


class AffineTransform(GeometryTransform):
    """Base of transforms that draw a 2 x 3 ``matrix`` from source to target pixels and warp by it."""

    interpolation = cv2.INTER_LINEAR
    border_mode = cv2.BORDER_CONSTANT
    fill: Fill = 0.0
    fill_mask: Fill = 0.0

    def apply(self, img: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        """Warp the picture."""
        return warp_affine(img, matrix, self.interpolation, self.border_mode, self.fill)

    def apply_to_mask(self, mask: np.ndarray, matrix: np.ndarray, **params: Any) -> np.ndarray:
        """Warp a mask by the nearest pixel."""
        return warp_affine(mask, matrix, cv2.INTER_NEAREST, self.border_mode, self.fill_mask)
