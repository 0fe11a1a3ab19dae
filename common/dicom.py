"""From a CT slice's DICOM file to Hounsfield units: reading, rescale, windows, slice geometry, sizes.

Pure functions over one file or array. What can be wrong with a file is a :class:`DicomError` with a reason from
:data:`REASONS`; its message never quotes a header's text, since that can carry a patient's name.
"""

from __future__ import annotations

import logging
import math
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from common.errors import WorkError

if TYPE_CHECKING:
    from pydicom import Dataset

AIR_HU = -1024
PADDING_STORED = -2000  # what GE scanners store outside their circle, whether or not PixelPaddingValue says so
BITS_ALLOCATED = 16  # the standard's only value for CT images (PS3.3 C.8.2.1)
MAX_SIDE = 4096
MAX_FILE_BYTES = 2**27
NATIVE_SYNTAXES = {  # transfer syntax UID -> byte order of the pixels
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.2": ">",
}

# The wrap, known from 123 images of the competition: 12-bit values that were stored modulo 4096 in a file whose
# intercept says otherwise.
WRAP_BITS = 12
WRAP_MODULUS = 2**WRAP_BITS
WRAP_MIN_INTERCEPT = -100
WRAP_AIR = (3072, 3096)  # -1024 and -1000 HU modulo 4096
WRAP_AIR_SHARE = 0.01  # of the pixels; an unwrapped image has hardly any there

REASONS = (
    "not_dicom",
    "unreadable",
    "too_large",
    "transfer_syntax",
    "not_ct",
    "localizer",
    "no_image",
    "colour",
    "multi_frame",
    "pixel_format",
    "rescale",
    "truncated",
)


class DicomError(WorkError):
    """A file that gives no image; ``reason`` is one of :data:`REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[DicomError], tuple[str, str]]:
        return DicomError, (self.reason, str(self))


@contextmanager
def quiet_pydicom() -> Iterator[list[str]]:
    """Keep pydicom's warnings and log lines off the console; yield a list that gets the kind of each.

    They quote header values, so only their kind is kept. Values are not checked against their VR meanwhile: the
    competition's identifiers are no UIDs, and each value that matters is checked where it is used.
    """
    from pydicom import config

    kinds: list[str] = []

    def count(record: logging.LogRecord) -> bool:
        kinds.append(record.levelname)
        return False

    logger = logging.getLogger("pydicom")
    mode = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    logger.addFilter(count)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield kinds
            kinds += [warning.category.__name__ for warning in caught]
    finally:
        logger.removeFilter(count)
        config.settings.reading_validation_mode = mode


def read_dicom(path: Path) -> Dataset:
    """Read a file that holds one uncompressed, single-frame CT image; call it within :func:`quiet_pydicom`.

    Raises :class:`DicomError` for everything else, before any pixel is decoded.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    _check_file(path)
    try:
        # The meta part first: a deflated file of a megabyte can inflate to gigabytes while it is read.
        syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
        if syntax not in NATIVE_SYNTAXES:
            raise DicomError("transfer_syntax", f"{_syntax_name(syntax)} is not an uncompressed transfer syntax")
        dataset = dcmread(path)
    except DicomError:
        raise
    except InvalidDicomError:
        raise DicomError("not_dicom", "not a DICOM file: the mark DICM is missing") from None
    except Exception as error:  # whatever a damaged file makes of the parser: ValueError, TypeError, RecursionError ...
        raise DicomError("unreadable", f"not readable as DICOM ({type(error).__name__})") from None
    _check_is_ct_image(dataset)
    return dataset


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


def window(image_hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """Map [center - width / 2, center + width / 2] HU linearly to [0, 1], clipped; float32 of the image's shape."""
    scaled = (image_hu.astype(np.float32) - np.float32(center - width / 2)) / np.float32(width)
    return np.clip(scaled, 0, 1, out=scaled)


def resize_area(image: np.ndarray, size: int, padding: float = AIR_HU) -> np.ndarray:
    """Return ``image`` (H, W) or (H, W, C) as a square of ``size`` pixels and the same type; 0: as it is.

    The longer side becomes ``size``, the shorter one keeps its proportion and is padded on both ends with ``padding``.
    A pixel of a reduced image is the mean over its area; an image that is smaller is enlarged linearly. Integer types
    are rounded to the nearest.
    """
    rows, columns = image.shape[:2]
    if size == 0 or rows == columns == size:
        return image
    scale = size / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    rule = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image.astype(np.float32, copy=False), (width, height), interpolation=rule)
    if np.issubdtype(image.dtype, np.integer):
        np.rint(resized, out=resized)
    square = np.full((size, size, *image.shape[2:]), padding, dtype=image.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = resized.reshape(height, width, *image.shape[2:])
    return square


@dataclass(frozen=True)
class SliceGeometry:
    """Where a slice lies, in millimetres of patient coordinates (PS3.3 C.7.6.2); NaN for what the file doesn't say.

    ``position``: of the first pixel's centre (x, y, z); ``orientation``: direction of a row, then of a column;
    ``thickness_mm`` as the file says it, which is not the distance to the next slice.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    row_spacing_mm: float
    column_spacing_mm: float
    thickness_mm: float


def slice_geometry(dataset: Dataset) -> SliceGeometry:
    """Read a slice's geometry; a value that is missing, malformed or not finite makes its whole field NaN."""
    row_spacing, column_spacing = _numbers(dataset, "PixelSpacing", 2)
    return SliceGeometry(
        _numbers(dataset, "ImagePositionPatient", 3),
        _numbers(dataset, "ImageOrientationPatient", 6),
        row_spacing,
        column_spacing,
        *_numbers(dataset, "SliceThickness", 1),
    )


def pixel_form(dataset: Dataset) -> str:
    """Return what the header of a readable image says of its stored numbers.

    BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept, as in ``12/0/1/-1024``: numbers only, no text of the
    file.
    """
    slope, intercept = _rescale(dataset)
    bits_stored, representation = _integer(dataset, "BitsStored"), _integer(dataset, "PixelRepresentation")
    return f"{bits_stored}/{representation}/{slope:.6g}/{intercept:.6g}"


def slice_positions(positions: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Return the place of each slice of a series along the series' normal, in mm, shape (N,).

    ``positions`` (N, 3) and ``orientations`` (N, 6) are in mm as in :class:`SliceGeometry`. The normal is that of the
    orientation that most slices have, so that a stray slice doesn't turn it. With a tilted gantry it is not the z
    axis, and differences along it are the slices' true distances. NaN for a slice or a series without geometry.
    """
    place = np.full(len(positions), np.nan)
    known = np.isfinite(positions).all(axis=1) & np.isfinite(orientations).all(axis=1)
    if not known.any():
        return place
    _, first, counts = np.unique(orientations[known].round(3), axis=0, return_index=True, return_counts=True)
    orientation = orientations[known][first[counts.argmax()]]
    normal = np.cross(orientation[:3], orientation[3:])
    length = np.linalg.norm(normal)
    if length > 0:
        place[known] = positions[known] @ (normal / length)
    return place


def slice_order(position_mm: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Return the indices that put a series' slices in order: by position, equal ones by id, unknown ones last."""
    # Positions are decimal texts in the file: what differs by less than a micrometre is the same place.
    return np.lexsort((image_ids, np.round(position_mm, 3)))


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


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise DicomError("unreadable", f"cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise DicomError("unreadable", "not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise DicomError("too_large", f"{status.st_size} bytes; at most {MAX_FILE_BYTES} are read")


def _syntax_name(syntax: str) -> str:
    from pydicom.uid import UID

    uid = UID(syntax)
    return uid.name if uid.is_transfer_syntax else "an unknown transfer syntax"


def _check_is_ct_image(dataset: Dataset) -> None:
    if _text(dataset, "Modality") != "CT":
        raise DicomError("not_ct", "Modality is missing or not CT")
    image_type = _value(dataset, "ImageType")
    if image_type is not None and "LOCALIZER" in str(image_type).upper():
        raise DicomError("localizer", "ImageType says that it is a localizer (scout) image")
    if "PixelData" not in dataset:
        if "Rows" in dataset:
            raise DicomError("truncated", "there is no PixelData: a cut file")
        raise DicomError("no_image", "holds no image (neither Rows nor PixelData)")
    if _integer(dataset, "SamplesPerPixel") != 1:
        raise DicomError("colour", "SamplesPerPixel is not 1")
    if not _text(dataset, "PhotometricInterpretation").startswith("MONOCHROME"):
        raise DicomError("colour", "PhotometricInterpretation is not MONOCHROME1 or MONOCHROME2")
    if _value(dataset, "NumberOfFrames") is not None and _integer(dataset, "NumberOfFrames") != 1:
        raise DicomError("multi_frame", "NumberOfFrames is not 1")


def _pixel_form(dataset: Dataset) -> _PixelForm:
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise DicomError("pixel_format", f"{rows} x {columns} pixels; 1 to {MAX_SIDE} are read on each side")
    if _integer(dataset, "BitsAllocated") != BITS_ALLOCATED:
        raise DicomError("pixel_format", f"BitsAllocated is not {BITS_ALLOCATED}")
    bits_stored, representation = _integer(dataset, "BitsStored"), _integer(dataset, "PixelRepresentation")
    if not 1 <= bits_stored <= BITS_ALLOCATED or _integer(dataset, "HighBit") != bits_stored - 1:
        raise DicomError("pixel_format", "BitsStored and HighBit don't fit each other")
    if representation not in (0, 1):
        raise DicomError("pixel_format", "PixelRepresentation is not 0 or 1")
    byte_order = NATIVE_SYNTAXES[str(dataset.file_meta.TransferSyntaxUID)]
    return _PixelForm(rows, columns, bits_stored, representation == 1, byte_order)


def _rescale(dataset: Dataset) -> tuple[float, float]:
    values = []
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        (value,) = _numbers(dataset, keyword, 1)
        if math.isnan(value):
            raise DicomError("rescale", f"{keyword} is missing or not a finite number")
        values.append(value)
    slope, intercept = values
    if slope == 0:
        raise DicomError("rescale", "RescaleSlope is 0")
    return slope, intercept


def _pixel_data(dataset: Dataset, pixels: _PixelForm) -> bytes:
    data = _value(dataset, "PixelData")
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
    declared = _value(dataset, "PixelPaddingValue")
    if declared is not None:
        first = _as_stored(_integer(dataset, "PixelPaddingValue"), container.dtype)
        last = first
        if _value(dataset, "PixelPaddingRangeLimit") is not None:
            last = _as_stored(_integer(dataset, "PixelPaddingRangeLimit"), container.dtype)
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


def _value(dataset: Dataset, keyword: str) -> Any:
    """Return an element's value, None where it is missing, empty or can't be converted (pydicom converts on access)."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom raises whatever the conversion of a damaged value raises
        return None
    return None if value is None or (isinstance(value, str) and not value.strip()) else value


def _text(dataset: Dataset, keyword: str) -> str:
    return str(_value(dataset, keyword) or "").strip()


def _integer(dataset: Dataset, keyword: str) -> int:
    value = _value(dataset, keyword)
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise DicomError("pixel_format", f"{keyword} is missing or not a whole number") from None


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Return ``count`` finite numbers; all NaN where the element holds anything else."""
    unknown = (math.nan,) * count
    value = _value(dataset, keyword)
    if value is None or (count > 1 and isinstance(value, (str, bytes))):
        return unknown
    try:
        numbers = tuple(float(number) for number in (value if count > 1 else (value,)))
    except (TypeError, ValueError):
        return unknown
    return numbers if len(numbers) == count and all(math.isfinite(number) for number in numbers) else unknown
