"""Window and resize images."""

from __future__ import annotations

import cv2
import numpy as np

AIR_HU = -1024


def window(image_hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """Map [center - width / 2, center + width / 2] HU linearly to [0, 1], clipped; float32 of the image's shape."""
    scaled = np.subtract(image_hu, np.float32(center - width / 2), dtype=np.float32)
    np.divide(scaled, np.float32(width), out=scaled)
    return np.clip(scaled, 0, 1, out=scaled)


def resize_area(image: np.ndarray, size: int, padding: float = AIR_HU) -> np.ndarray:
    """Return ``image`` (H, W) or (H, W, C) as a square of ``size`` pixels, of the same type; 0 leaves it as it is.

    The longer side becomes ``size``. The shorter side keeps its proportion and is padded with ``padding`` at both ends.
    A pixel of a reduced image is the mean over its area; a smaller image is enlarged linearly. Integer types are
    rounded to the nearest integer.
    """
    rule = cv2.INTER_AREA if size < max(image.shape[:2]) else cv2.INTER_LINEAR
    return _fit(image, size, padding, rule)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Return a mask, uint8 (H, W), placed as :func:`resize_area` places its image: nearest pixels, 0 at both ends."""
    return _fit(mask, size, 0, cv2.INTER_NEAREST_EXACT)


def _fit(image: np.ndarray, size: int, padding: float, rule: int) -> np.ndarray:
    rows, columns = image.shape[:2]
    if size == 0 or rows == columns == size:
        return image
    scale = size / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    resized = cv2.resize(image.astype(np.float32, copy=False), (width, height), interpolation=rule)
    if np.issubdtype(image.dtype, np.integer):
        np.rint(resized, out=resized)
    square = np.full((size, size, *image.shape[2:]), padding, dtype=image.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = resized.reshape(height, width, *image.shape[2:])
    return square


def lowest_and_highest(image: np.ndarray) -> tuple[int, int]:
    """Return the minimum and maximum of an image (H, W) of 16-bit integers, in one pass."""
    low, high, _, _ = cv2.minMaxLoc(image)
    return int(low), int(high)
