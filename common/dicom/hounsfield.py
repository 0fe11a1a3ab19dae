"""Convert stored pixel values to Hounsfield units."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from common.dicom.pictures import AIR_HU, lowest_and_highest
from common.dicom.slices import PixelForm, SliceHeader

PADDING_STORED = -2000  # what GE scanners store outside the scan circle, with or without PixelPaddingValue
CONTAINER_BITS = 16
BLOCK_PIXELS = 2**20  # rescaled at once in float64
# To find padding that the header doesn't give, or gives inexactly: -2048, -3024, or values spread by lossy coding.
FAR_HU = 200  # further below air nothing is a measurement, except for a few pixels beside metal
OUTSIDE_SHARE = 0.005  # if at least this share of the pixels is far from air, they lie outside the scan circle
OUTSIDE_PIXELS = 16
AIR_RANGE_HU = (-1100, -900)
SOLID_HU = -500
CT_HIGHEST_HU = 4095  # of a 12-bit scale; metal and wider scales reach more

# Wrapped values, as in 123 images of the competition: 12-bit values stored modulo 4096, in a file whose intercept
# doesn't account for it.
WRAP_BITS = 12
WRAP_MODULUS = 2**WRAP_BITS
WRAP_MIN_INTERCEPT = -100
WRAP_AIR = (3072, 3096)  # -1024 and -1000 HU modulo 4096
WRAP_AIR_SHARE = 0.01  # at least, in a wrapped image; any other has hardly a pixel there

HU_LIMITS = np.iinfo(np.int16)


def hounsfield(container: np.ndarray, form: PixelForm, header: SliceHeader) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an image in Hounsfield units, int16 (rows, columns), and the names of the repairs made in it.

    ``container`` holds the stored 16-bit values, (rows, columns), int16 if ``form.signed``, else uint16. It is never
    changed. HU = slope x stored + intercept (PS3.3 C.11.1), rounded to the nearest integer (half to even) and clipped
    to int16.

    - ``padding``: pixels without a measurement became -1024 HU. They are PixelPaddingValue or its range, -2000, and
      pixels outside the scan circle (see :func:`_outside`).
    - ``wrap``: values stored modulo 4096 were unwrapped.
    - ``wrap_doubtful``: the header is like that of a wrapped image, the pixels are not. The image was left alone.
    - ``unused_bits``: bits above BitsStored were set. They were ignored (PS3.5 8.1.1).
    """
    low, high = lowest_and_highest(container)
    padding = _padding_mask(container, low, high, form, header)
    stored = _without_unused_bits(container, low, high, form)
    mended = ["unused_bits"] if stored is not container else []
    intercept = header.intercept
    if form.bits_stored == WRAP_BITS and not form.signed and intercept > WRAP_MIN_INTERCEPT:
        wrap_start = _wrap_start(stored) if header.slope == 1 else None
        mended.append("wrap_doubtful" if wrap_start is None else "wrap")
        if wrap_start is not None:
            values = stored.view(np.int16)
            stored = np.where(values >= wrap_start, values - np.int16(WRAP_MODULUS), values)
            intercept = 0.0
    if stored is not container:
        low, high = lowest_and_highest(stored)
    image_hu = _apply_rescale(stored, low, high, header.slope, intercept)
    air = _air(image_hu.shape)
    if padding is not None:
        image_hu = cv2.copyTo(air, padding.view(np.uint8), image_hu)  # a third of np.copyto's time
    outside = _outside(image_hu, form, header, padding)
    if outside is not None:
        image_hu = cv2.copyTo(air, outside.view(np.uint8), image_hu)
    if padding is not None or outside is not None:
        mended.append("padding")
    return image_hu, tuple(mended)


@lru_cache(maxsize=1)
def _air(shape: tuple[int, int]) -> np.ndarray:
    return np.full(shape, AIR_HU, dtype=np.int16)


def _padding_mask(
    container: np.ndarray, low: int, high: int, form: PixelForm, header: SliceHeader
) -> np.ndarray | None:
    """Return the mask of the pixels that hold padding, None if none does."""
    ranges = [] if form.padding is None else [form.padding]
    # Without PixelPaddingValue, -2000 is padding only if it can't be a measurement: below air or beyond BitsStored.
    if form.signed and header.slope * PADDING_STORED + header.intercept < AIR_HU:
        ranges.append((PADDING_STORED, PADDING_STORED))
    elif not form.signed and form.bits_stored < CONTAINER_BITS:
        twin = PADDING_STORED % 2**CONTAINER_BITS
        ranges.append((twin, twin))
    mask = None
    for first, last in ranges:
        if first <= high and last >= low:
            inside = container == first if first == last else (container >= first) & (container <= last)
            mask = inside if mask is None else mask | inside
    return mask if mask is not None and mask.any() else None


def _outside(
    image_hu: np.ndarray, form: PixelForm, header: SliceHeader, padding: np.ndarray | None
) -> np.ndarray | None:
    """Return the mask of the pixels outside the scan circle, None if there are none. ``padding`` is air by now.

    - Nothing in a patient is below air. A few pixels beside metal are, and keep their values.
    - If many pixels are far below air, or share the lowest value, they lie outside the circle. Then every pixel below
      air does, because lossy coding and interpolation spread the padding.
    - In a lossy image the exact padding counts toward "many".
    - Without a padding value in the header, the image must also show air and something solid at their usual values.
      If it doesn't, the rescale is wrong, and nothing is changed.
    - In a lossy image whose padding is above the range of CT, the spread is searched for there.
    """
    low, high = lowest_and_highest(image_hu)
    lossy = "lossy" in header.marks
    known = np.count_nonzero(padding) if lossy and padding is not None else 0
    enough = max(OUTSIDE_PIXELS, OUTSIDE_SHARE * image_hu.size)
    needed = enough - known
    if low < AIR_HU and (form.padding is not None or high > SOLID_HU):
        far = np.count_nonzero(image_hu < AIR_HU - FAR_HU)
        if (far and far >= needed) or np.count_nonzero(image_hu == low) >= needed:
            first, last = AIR_RANGE_HU
            if form.padding is not None or np.count_nonzero((image_hu >= first) & (image_hu <= last)) >= enough:
                return image_hu < AIR_HU
    if lossy and form.padding is not None and high > CT_HIGHEST_HU:
        nearest = min(header.slope * end + header.intercept for end in form.padding)
        middle = (CT_HIGHEST_HU + min(nearest, HU_LIMITS.max)) / 2
        if middle > CT_HIGHEST_HU and np.count_nonzero(image_hu >= middle) >= needed:
            return image_hu >= middle
    return None


def _without_unused_bits(container: np.ndarray, low: int, high: int, form: PixelForm) -> np.ndarray:
    """Return the values without the bits above BitsStored: the same array if none of these bits is set."""
    lowest = -(1 << (form.bits_stored - 1)) if form.signed else 0
    if low >= lowest and high < lowest + (1 << form.bits_stored):
        return container
    unused = CONTAINER_BITS - form.bits_stored
    return (container << unused) >> unused  # arithmetic for signed types: the sign is extended


def _wrap_start(stored: np.ndarray) -> int | None:
    """Return the smallest stored value that stands for a negative HU, None if no peak of air proves a wrap.

    Scanners that clip at -1000 HU store air as 3096 and use 3072 to 3095 for metal. The competition's rule is this
    case: add 1000, subtract 4096 from what reaches it, intercept -1000. If air lies below 3096, the scanner clips at
    -1024.
    """
    first, last = WRAP_AIR
    air = np.count_nonzero((stored >= first) & (stored <= last))
    if air < WRAP_AIR_SHARE * stored.size:
        return None
    below = np.count_nonzero((stored >= first) & (stored < last))
    return first if below >= WRAP_AIR_SHARE * stored.size else last


def _apply_rescale(stored: np.ndarray, low: int, high: int, slope: float, intercept: float) -> np.ndarray:
    if slope == 1 and intercept == int(intercept):
        shift = int(intercept)
        if low + shift >= HU_LIMITS.min and high + shift <= HU_LIMITS.max:
            # Adding modulo 2**16 is exact because every sum fits. It is three times as fast as through int32.
            return stored.view(np.int16) + np.uint16(shift % 2**16).view(np.int16)
    image_hu = np.empty(stored.shape, dtype=np.int16)
    rows = max(1, BLOCK_PIXELS // stored.shape[1])
    with np.errstate(over="ignore"):
        for start in range(0, stored.shape[0], rows):
            values = stored[start : start + rows].astype(np.float64)
            values *= slope
            values += intercept
            np.rint(values, out=values)
            image_hu[start : start + rows] = np.clip(values, HU_LIMITS.min, HU_LIMITS.max, out=values)
    return image_hu
