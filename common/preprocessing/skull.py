"""Measure what a skull encloses in a CT slice. A chest, a neck or a belly has no such ring of bone."""

from __future__ import annotations

import cv2
import numpy as np

STEP_MM = 3.0  # pixel size of the reduced image
SMALLEST_FIELD_MM = 120.0  # a smaller picture holds no whole head, and proves nothing
SKULL_HU = 200
SKULL_PERCENT = 20  # of a reduced pixel that is skull, which thin bone fills in part
OPEN_MM = 12.0  # gaps of the skull up to this width count as closed
HEAD_MM2 = 2000.0  # a slice in which bone encloses more is of a head


def skull_area(image_hu: np.ndarray, row_spacing_mm: float, column_spacing_mm: float) -> float:
    """Return the area in mm² that bone encloses in a slice, int16 HU (H, W). Spacings are in mm.

    NaN for an unknown spacing and for a picture too small to hold a head. Pixels of up to 3 mm make it quick.
    """
    rows, columns = image_hu.shape
    if not (row_spacing_mm > 0 and column_spacing_mm > 0):
        return np.nan
    height_mm, width_mm = rows * row_spacing_mm, columns * column_spacing_mm
    if not SMALLEST_FIELD_MM <= min(height_mm, width_mm) <= max(height_mm, width_mm) < 10 * SMALLEST_FIELD_MM:
        return np.nan
    # A whole number of pixels in each reduced one: OpenCV averages these many times quicker.
    down, across = (max(1, int(STEP_MM / spacing)) for spacing in (row_spacing_mm, column_spacing_mm))
    size = columns // across, rows // down
    whole = image_hu[: size[1] * down, : size[0] * across]
    bone = cv2.resize((whole >= SKULL_HU).view(np.uint8) * np.uint8(100), size, interpolation=cv2.INTER_AREA)
    skull = (bone >= SKULL_PERCENT).astype(np.uint8)
    side = 2 * round(OPEN_MM / STEP_MM / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    framed = cv2.copyMakeBorder(skull, side, side, side, side, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(framed, cv2.MORPH_CLOSE, disc)
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    inside = cv2.drawContours(np.zeros_like(closed), outlines, -1, 1, cv2.FILLED)[side:-side, side:-side]
    enclosed = cv2.morphologyEx(inside & (1 - skull), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return float(np.count_nonzero(enclosed) * down * row_spacing_mm * across * column_spacing_mm)
