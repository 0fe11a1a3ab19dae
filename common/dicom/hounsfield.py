"""From a CT image's data set to Hounsfield units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.dicom.elements import integer_of, numbers_of, value_of
from common.dicom.errors import DicomError
from common.dicom.reading import NATIVE_SYNTAXES

if TYPE_CHECKING:
    from pydicom import Dataset

AIR_HU = -1024
PADDING_STORED = -2000  # what GE scanners store outside their circle, whether or not PixelPaddingValue says so
BITS_ALLOCATED = 16  # the standard's only value for CT images (PS3.3 C.8.2.1)
MAX_SIDE = 4096

# The wrap, known from 123 images of the competition: 12-bit values that were stored modulo 4096 in a file whose
# intercept says otherwise.
WRAP_BITS = 12
WRAP_MODULUS = 2**WRAP_BITS
WRAP_MIN_INTERCEPT = -100
WRAP_AIR = (3072, 3096)  # -1024 and -1000 HU modulo 4096
WRAP_AIR_SHARE = 0.01  # of the pixels; an unwrapped image has hardly any there


def hounsfield(dataset: Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the image in Hounsfield units, int16 (rows, columns), and the names of what was mended in it.

    HU = slope x stored + intercept (PS3.3 C.11.1), rounded to the nearest integer (half to even), clipped to int16.

    - ``padding``: pixels that hold no measurement (PixelPaddingValue or its range, or -2000) became -1024.
    - ``wrap``: values stored modulo 4096 were unwrapped. ``wrap_doubtful``: the header looks like such a file's, the
      picture doesn't; it was left alone.
    - ``unused_bits``: bits above BitsStored were set and ignored, as PS3.5 8.1.1 has it.
    - ``excess``: PixelData is longer than the image; the rest was ignored.

    Raises :class:`DicomError`: a rescale that is missing, not finite or of slope 0, fewer pixels than declared, no
    16-bit pixels, sizes beyond :data:`MAX_SIDE`.
    """
    pixels = _pixel_form(dataset)
    slope, intercept = _rescale(dataset)
    data = _pixel_data(dataset, pixels)
    container = _container_values(data, pixels)
    padding = _padding_mask(dataset, pixels, container, slope, intercept)
    stored = _stored_values(container, pixels)

    mended = []
    if stored is not container:
        mended.append("unused_bits")
    if pixels.bits_stored == WRAP_BITS and not pixels.signed and intercept > WRAP_MIN_INTERCEPT:
        wrap_start = _wrap_start(stored) if slope == 1 else None
        mended.append("wrap_doubtful" if wrap_start is None else "wrap")
        if wrap_start is not None:
            stored = np.where(stored >= wrap_start, stored.astype(np.int32) - WRAP_MODULUS, stored)
            intercept = 0
    image_hu = _apply_rescale(stored, slope, intercept)
    if padding is not None:
        image_hu[padding] = AIR_HU
        mended.append("padding")
    if len(data) > pixels.declared_bytes:
        mended.append("excess")
    return image_hu, tuple(mended)


def pixel_form(dataset: Dataset) -> str:
    """Return what the header of a readable image says of its stored numbers.

    BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept, as in ``12/0/1/-1024``: numbers only, no text of the
    file.
    """
    slope, intercept = _rescale(dataset)
    bits_stored, representation = integer_of(dataset, "BitsStored"), integer_of(dataset, "PixelRepresentation")
    return f"{bits_stored}/{representation}/{slope:.6g}/{intercept:.6g}"


@dataclass(frozen=True)
class _PixelForm:
    rows: int
    columns: int
    bits_stored: int
    signed: bool
    byte_order: str

    @property
    def declared_bytes(self) -> int:
        return self.rows * self.columns * BITS_ALLOCATED // 8


def _pixel_form(dataset: Dataset) -> _PixelForm:
    rows, columns = integer_of(dataset, "Rows"), integer_of(dataset, "Columns")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise DicomError("pixel_format", f"{rows} x {columns} pixels; 1 to {MAX_SIDE} are read on each side")
    if integer_of(dataset, "BitsAllocated") != BITS_ALLOCATED:
        raise DicomError("pixel_format", f"BitsAllocated is not {BITS_ALLOCATED}")
    bits_stored, representation = integer_of(dataset, "BitsStored"), integer_of(dataset, "PixelRepresentation")
    if not 1 <= bits_stored <= BITS_ALLOCATED or integer_of(dataset, "HighBit") != bits_stored - 1:
        raise DicomError("pixel_format", "BitsStored and HighBit don't fit each other")
    if representation not in (0, 1):
        raise DicomError("pixel_format", "PixelRepresentation is not 0 or 1")
    byte_order = NATIVE_SYNTAXES[str(dataset.file_meta.TransferSyntaxUID)]
    return _PixelForm(rows, columns, bits_stored, representation == 1, byte_order)


def _rescale(dataset: Dataset) -> tuple[float, float]:
    values = []
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        (value,) = numbers_of(dataset, keyword, 1)
        if math.isnan(value):
            raise DicomError("rescale", f"{keyword} is missing or not a finite number")
        values.append(value)
    slope, intercept = values
    if slope == 0:
        raise DicomError("rescale", "RescaleSlope is 0")
    return slope, intercept


def _pixel_data(dataset: Dataset, pixels: _PixelForm) -> bytes:
    data = value_of(dataset, "PixelData")
    if data is None:
        data = b""
    if not isinstance(data, bytes):
        raise DicomError("pixel_format", "PixelData is not a block of bytes")
    if len(data) < pixels.declared_bytes:
        raise DicomError(
            "truncated", f"PixelData holds {len(data)} bytes where {pixels.declared_bytes} are declared: a cut file"
        )
    return data


def _container_values(data: bytes, pixels: _PixelForm) -> np.ndarray:
    """Return the 16-bit numbers as they stand in the file, (rows, columns), read-only."""
    dtype = np.dtype(f"{pixels.byte_order}{'i' if pixels.signed else 'u'}2")
    values = np.frombuffer(data, dtype, pixels.rows * pixels.columns).reshape(pixels.rows, pixels.columns)
    return values.astype(dtype.newbyteorder("="), copy=False)


def _stored_values(container: np.ndarray, pixels: _PixelForm) -> np.ndarray:
    """Return the numbers without the bits above BitsStored; the same array where none of these was set."""
    if pixels.bits_stored == BITS_ALLOCATED:
        return container
    low = -(1 << (pixels.bits_stored - 1)) if pixels.signed else 0
    if container.min() >= low and container.max() < low + (1 << pixels.bits_stored):
        return container
    unused = BITS_ALLOCATED - pixels.bits_stored
    return (container << unused) >> unused  # arithmetic for signed types: the sign is extended


def _padding_mask(
    dataset: Dataset, pixels: _PixelForm, container: np.ndarray, slope: float, intercept: float
) -> np.ndarray | None:
    """Return which pixels hold padding, None where none does."""
    signed_view = container.view(np.int16)
    mask = np.zeros(container.shape, dtype=bool)
    # -2000 counts as padding unasked only where it can't be a measurement: below air, or outside the stored bits.
    if (pixels.signed and slope * PADDING_STORED + intercept < AIR_HU) or (
        not pixels.signed and pixels.bits_stored < BITS_ALLOCATED
    ):
        mask = signed_view == PADDING_STORED
    declared = value_of(dataset, "PixelPaddingValue")
    if declared is not None:
        first = _as_stored(integer_of(dataset, "PixelPaddingValue"), container.dtype)
        last = first
        if value_of(dataset, "PixelPaddingRangeLimit") is not None:
            last = _as_stored(integer_of(dataset, "PixelPaddingRangeLimit"), container.dtype)
        mask |= (container >= min(first, last)) & (container <= max(first, last))
    return mask if mask.any() else None


def _as_stored(value: int, dtype: np.dtype) -> int:
    """Return a padding value in the pixels' type: files often give -2000 as its unsigned twin 63536."""
    return int(np.array(value & 0xFFFF, dtype=np.uint16).view(dtype))


def _wrap_start(stored: np.ndarray) -> int | None:
    """Return the smallest stored value that stands for a negative HU, None where no peak of air proves the wrap.

    Scanners that cut at -1000 HU have their air at 3096 and use 3072 to 3095 for metal; DATA's rule (add 1000, take
    4096 off what reaches it, intercept -1000) is that case. Where air itself lies below 3096, they cut at -1024.
    """
    first, last = WRAP_AIR
    air = np.count_nonzero((stored >= first) & (stored <= last))
    if air < WRAP_AIR_SHARE * stored.size:
        return None
    below = np.count_nonzero((stored >= first) & (stored < last))
    return first if below >= WRAP_AIR_SHARE * stored.size else last


def _apply_rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    limits = np.iinfo(np.int16)
    if slope == 1 and intercept == int(intercept) and abs(intercept) < 2**30:
        values = stored.astype(np.int32)
        values += int(intercept)
    else:
        with np.errstate(over="ignore"):
            values = np.rint(stored.astype(np.float64) * slope + intercept)
    return np.clip(values, limits.min, limits.max, out=values).astype(np.int16)
