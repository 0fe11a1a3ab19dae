"""From stored numbers to Hounsfield units."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from common.dicom.slices import PixelForm, SliceHeader

AIR_HU = -1024
PADDING_STORED = -2000  # what GE scanners store outside their circle, whether or not PixelPaddingValue says so
CONTAINER_BITS = 16
BLOCK_PIXELS = 2**20  # of a picture, rescaled at once in float64

# The wrap, known from 123 images of the competition: 12-bit values that were stored modulo 4096 in a file whose
# intercept says otherwise.
WRAP_BITS = 12
WRAP_MODULUS = 2**WRAP_BITS
WRAP_MIN_INTERCEPT = -100
WRAP_AIR = (3072, 3096)  # -1024 and -1000 HU modulo 4096
WRAP_AIR_SHARE = 0.01  # of the pixels; an unwrapped image has hardly any there

HU_LIMITS = np.iinfo(np.int16)


def hounsfield(container: np.ndarray, form: PixelForm, header: SliceHeader) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return an image in Hounsfield units, int16 (rows, columns), and the names of what was mended in it.

    ``container``: the 16-bit numbers as they are stored, (rows, columns), uint16 or int16 as ``form.signed`` says;
    never changed. HU = slope x stored + intercept (PS3.3 C.11.1), rounded to the nearest integer (half to even),
    clipped to int16.

    - ``padding``: pixels that hold no measurement (PixelPaddingValue or its range, or -2000) became -1024.
    - ``wrap``: values stored modulo 4096 were unwrapped. ``wrap_doubtful``: the header looks like such a file's, the
      picture doesn't; it was left alone.
    - ``unused_bits``: bits above BitsStored were set and ignored, as PS3.5 8.1.1 has it.
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
    if padding is not None:
        image_hu = cv2.copyTo(_air(image_hu.shape), padding.view(np.uint8), image_hu)  # a third of np.copyto's time
        mended.append("padding")
    return image_hu, tuple(mended)


def lowest_and_highest(image: np.ndarray) -> tuple[int, int]:
    """Return the extremes of a picture (H, W) of 16-bit numbers, by one pass over it."""
    low, high, _, _ = cv2.minMaxLoc(image)
    return int(low), int(high)


@lru_cache(maxsize=1)
def _air(shape: tuple[int, int]) -> np.ndarray:
    return np.full(shape, AIR_HU, dtype=np.int16)


def _padding_mask(
    container: np.ndarray, low: int, high: int, form: PixelForm, header: SliceHeader
) -> np.ndarray | None:
    """Return which pixels hold padding, None where none does."""
    ranges = [] if form.padding is None else [form.padding]
    # -2000 counts as padding unasked only where it can't be a measurement: below air, or outside the stored bits.
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


def _without_unused_bits(container: np.ndarray, low: int, high: int, form: PixelForm) -> np.ndarray:
    """Return the numbers without the bits above BitsStored; the same array where none of these was set."""
    lowest = -(1 << (form.bits_stored - 1)) if form.signed else 0
    if low >= lowest and high < lowest + (1 << form.bits_stored):
        return container
    unused = CONTAINER_BITS - form.bits_stored
    return (container << unused) >> unused  # arithmetic for signed types: the sign is extended


def _wrap_start(stored: np.ndarray) -> int | None:
    """Return the smallest stored value that stands for a negative HU, None where no peak of air proves the wrap.

    Scanners that cut at -1000 HU have their air at 3096 and use 3072 to 3095 for metal; the competition's rule (add
    1000, take 4096 off what reaches it, intercept -1000) is that case. Where air itself lies below 3096, they cut at
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
            # Modulo 2**16, and so exact: every sum fits. Three times as fast as by way of int32.
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
