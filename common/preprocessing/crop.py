"""Find the head in a CT slice: its mask, without air, table and holder, and the box around it.

This takes about a millisecond, on a reduced image. Each slice is handled alone, so its box doesn't depend on other
slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from common.dicom.pictures import AIR_HU

STEP_MM = 1.5  # pixel size of the reduced image
USUAL_FIELD_MM = 240.0  # field of view of a head scan, for a file without pixel spacing
BODY_HU = -250  # denser: tissue, bone, hard parts of table and holder. Less dense: air, foam, cushions
TISSUE_HU = (-20, 100)  # brain, muscle and blood
BONE_HU = 300
THIN_MM = 9.0  # thinner separate parts are not the head: table top, shells of a holder, tubes
SHELL_MM = 3.0
SECOND_PART_SHARE = 0.1  # of the largest part's tissue
GAP_MM = 12.0  # openings of nose and ears up to this width belong to the head
MARGIN_MM = 4.0  # kept around the mask
MIN_AREA_MM2 = 500.0  # of a part of the head: a disc of 25 mm
MIN_TISSUE_SHARE = 0.3  # of a part of the head; plastics and carbon have hardly any


@dataclass(frozen=True)
class Crop:
    """The box to keep, in pixels, and the head's mask in it (rows, columns), None if no head was found."""

    top: int
    left: int
    rows: int
    columns: int
    mask: np.ndarray | None

    def apply(self, image_hu: np.ndarray) -> np.ndarray:
        """Return the box of an image, int16 HU (H, W), with air outside the mask. Without a head, return the image."""
        if self.mask is None:
            return image_hu
        box = image_hu[self.top : self.top + self.rows, self.left : self.left + self.columns]
        return np.where(self.mask, box, np.int16(AIR_HU))

    def whole_mask(self, shape: tuple[int, int]) -> np.ndarray | None:
        """Return the head's mask in the whole image of ``shape``, bool; None if no head was found."""
        if self.mask is None:
            return None
        whole = np.zeros(shape, bool)
        whole[self.top : self.top + self.rows, self.left : self.left + self.columns] = self.mask
        return whole


def find_head(image_hu: np.ndarray, row_spacing_mm: float, column_spacing_mm: float) -> Crop:
    """Find the head in a slice, int16 HU (H, W). Spacings are in mm, NaN if unknown.

    1. Remove everything thin: the table, a holder's shells, tubes, even if they touch the skin.
    2. Keep the parts that are large and made of tissue and bone.
    3. Add what hangs on them (ears, nose), their cavities and a margin.

    A head that reaches the edge of the image ends there. If there is no head, as above the vertex, the whole image is
    kept, so that a wrong guess loses nothing.
    """
    rows, columns = image_hu.shape
    usual_mm = USUAL_FIELD_MM / max(rows, columns)
    height_mm = rows * (row_spacing_mm if row_spacing_mm > 0 else usual_mm)
    width_mm = columns * (column_spacing_mm if column_spacing_mm > 0 else usual_mm)
    height, width = int(np.clip(height_mm / STEP_MM, 1, rows)), int(np.clip(width_mm / STEP_MM, 1, columns))
    small = cv2.resize(image_hu, (width, height), interpolation=cv2.INTER_AREA)
    head = _head_mask(small, float(np.sqrt(height_mm / height * width_mm / width)))
    if head is None:
        return Crop(0, 0, rows, columns, None)
    mask = cv2.resize(head, (columns, rows), interpolation=cv2.INTER_NEAREST)
    left, top, box_columns, box_rows = cv2.boundingRect(mask)
    box = mask[top : top + box_rows, left : left + box_columns]
    return Crop(top, left, box_rows, box_columns, box.astype(bool))


def _head_mask(small: np.ndarray, step_mm: float) -> np.ndarray | None:
    """Return the head in a reduced image (pixels of ``step_mm``) as 0 and 1, None if there is none."""
    body = (small > BODY_HU).astype(np.uint8)
    thin, gap, margin = (_disc(diameter / step_mm) for diameter in (THIN_MM, GAP_MM, 2 * MARGIN_MM))
    # Fill holes first, so that sinuses and a thin skull don't count as thin parts.
    core = _open_up_to_the_border(_fill(body), thin)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(core, connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]
    tissue = ((small >= TISSUE_HU[0]) & (small <= TISSUE_HU[1])) | (small >= BONE_HU)
    solid = np.bincount(parts[tissue], minlength=count)[1:]
    solid[(areas * step_mm**2 < MIN_AREA_MM2) | (solid < MIN_TISSUE_SHARE * areas)] = 0
    if not solid.any():
        return None
    # A slice can have several parts, as jaw and neck, or both sides of a cut skull.
    head = np.isin(parts, 1 + np.flatnonzero(solid > SECOND_PART_SHARE * solid.max())).astype(np.uint8)
    # Give back what was removed from the head itself, except for parts as thin as a holder's shell.
    near = cv2.dilate(head, thin) & cv2.morphologyEx(body, cv2.MORPH_OPEN, _disc(SHELL_MM / step_mm))
    return cv2.dilate(_fill(cv2.morphologyEx(head | near, cv2.MORPH_CLOSE, gap)), margin)


def _disc(diameter: float) -> np.ndarray:
    side = 2 * round(diameter / 2) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _fill(mask: np.ndarray) -> np.ndarray:
    """Return the mask with its holes filled."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED)


def _open_up_to_the_border(mask: np.ndarray, disc: np.ndarray) -> np.ndarray:
    """Open a mask as if it continued beyond the border, so that a head that reaches the border isn't eroded there."""
    rows, columns = mask.shape
    frame = len(disc)
    framed = cv2.copyMakeBorder(mask, frame, frame, frame, frame, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(framed, cv2.MORPH_OPEN, disc)
    return opened[frame : frame + rows, frame : frame + columns].copy()
