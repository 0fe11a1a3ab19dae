"""Read the header of a plain file without pydicom, in a tenth of the time.

Nearly all uncompressed files of a CT archive are plain, and so are the competition's: one frame, explicit little
endian, tags in order, and each field that matters has its own type and is well formed. Every field is checked. If one
is not so, pydicom reads the file, and :mod:`common.dicom.header` reports what is wrong with it.
"""

from __future__ import annotations

import math
import re
import struct
from functools import lru_cache
from typing import Any, NamedTuple

from common.dicom.elements import DECIMAL, HEADER_BYTES, printable
from common.dicom.errors import DicomError
from common.dicom.evidence import Evidence, check_evidence, unit_marks
from common.dicom.geometry import SliceGeometry
from common.dicom.scan import ScanFacts, ScanFields, describe_scan
from common.dicom.slices import CtHeader, Identity, PixelForm, SliceHeader, as_stored

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
START = 132  # after the preamble
ELEMENT = struct.Struct("<HH2sH")
LONG_LENGTH = struct.Struct("<L")
UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
META_CLASS, SYNTAX, CHARACTER_SET = 0x00020002, 0x00020010, 0x00080005
IMAGE_TYPE, CLASS, INSTANCE_ID, MODALITY, PATIENT_ID = 0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00100020
THICKNESS, STUDY_ID, SERIES_ID, POSITION, ORIENTATION = 0x00180050, 0x0020000D, 0x0020000E, 0x00200032, 0x00200037
SAMPLES, PHOTOMETRIC, FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
SPACING, ALLOCATED, STORED, HIGH_BIT, SIGNED = 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103
PADDING, PADDING_LIMIT, BURNED_IN, INTERCEPT, SLOPE, UNIT, LOSSY = (
    0x00280120, 0x00280121, 0x00280301, 0x00281052, 0x00281053, 0x00281054, 0x00282110,
)  # fmt: skip
SCAN_TEXTS = {  # by field of ScanFields
    "manufacturer": (0x00080070, b"LO"), "kernel": (0x00181210, b"SH"), "image_type": (IMAGE_TYPE, b"CS"),
    "agent": (0x00180010, b"LO"), "volume": (0x00181041, b"DS"), "dose": (0x00181044, b"DS"),
    "flow": (0x00181046, b"DS"), "series_text": (0x0008103E, b"LO"), "study_text": (0x00081030, b"LO"),
    "number": (0x00200011, b"IS"), "age": (0x00101010, b"AS"), "sex": (0x00100040, b"CS"),
}  # fmt: skip
KINDS = dict(SCAN_TEXTS.values()) | {
    META_CLASS: b"UI", SYNTAX: b"UI", CHARACTER_SET: b"CS", IMAGE_TYPE: b"CS", CLASS: b"UI", INSTANCE_ID: b"UI",
    MODALITY: b"CS", PATIENT_ID: b"LO",
    THICKNESS: b"DS", STUDY_ID: b"UI", SERIES_ID: b"UI", POSITION: b"DS", ORIENTATION: b"DS", SAMPLES: b"US",
    PHOTOMETRIC: b"CS", FRAMES: b"IS", ROWS: b"US", COLUMNS: b"US", SPACING: b"DS", ALLOCATED: b"US", STORED: b"US",
    HIGH_BIT: b"US", SIGNED: b"US", PADDING: b"US SS", PADDING_LIMIT: b"US SS", INTERCEPT: b"DS", SLOPE: b"DS",
    UNIT: b"LO", LOSSY: b"CS", BURNED_IN: b"CS",
}  # fmt: skip
SERIES_FIELDS = tuple(tag for tag in KINDS if tag not in (INSTANCE_ID, PATIENT_ID, STUDY_ID, SERIES_ID, POSITION))
MAX_VALUE_BYTES = 1024  # of a field that matters; longer ones are not kept
FUNCTIONAL_GROUPS = {0x52009229, 0x52009230}
ASCII_SETS = ("", "ISO_IR 6", "ISO_IR 100", "ISO_IR 192")  # character sets that contain ASCII unchanged
TEXT = re.compile(rb"[ -\[\]-~]*")  # ASCII without the backslash, which separates values
NUMBER = re.compile(DECIMAL.encode())


class PlainFile(NamedTuple):
    """The header, the offset of PixelData's value, and its length in bytes as the file gives it."""

    header: CtHeader
    start: int
    declared: int


class _NotPlain(Exception):
    """The file is for pydicom to read."""


def read_plain(content: bytes) -> PlainFile | None:
    """Read a file's header. Return None if the file is not plain."""
    try:
        values, start, declared = _elements(content)
        return PlainFile(_header(values), start, declared)
    except (_NotPlain, DicomError, struct.error):
        return None


def _elements(content: bytes) -> tuple[dict[int, tuple[bytes, bytes]], int, int]:
    """Return the type and value of each field that matters, and the offset and declared length of the pixels."""
    values = {}
    position, previous, size = START, 0, len(content)
    while True:
        group, number, kind, length = ELEMENT.unpack_from(content, position)
        tag = group << 16 | number
        header_bytes = HEADER_BYTES.get(kind)
        if header_bytes is None or tag <= previous or tag in FUNCTIONAL_GROUPS:
            raise _NotPlain
        if header_bytes == 12:
            (length,) = LONG_LENGTH.unpack_from(content, position + 8)
        position += header_bytes
        if length == UNDEFINED_LENGTH:
            raise _NotPlain
        if tag >= 0x7FE00000:
            if tag != PIXEL_DATA:
                raise _NotPlain
            return values, position, length
        if tag in KINDS:
            if kind not in KINDS[tag] or length > MAX_VALUE_BYTES:
                raise _NotPlain
            values[tag] = (kind, content[position : position + length])
        previous = tag
        position += length
        if position > size:
            raise _NotPlain


def _header(values: dict[int, tuple[bytes, bytes]]) -> CtHeader:
    form, slope, intercept, measures, marks, doubt, scan = _series_fields(tuple(map(values.get, SERIES_FIELDS)))
    geometry = SliceGeometry(_numbers(values, POSITION, 3), *measures)
    identity = Identity(*(printable(_text(values, tag)) for tag in (PATIENT_ID, STUDY_ID, SERIES_ID, INSTANCE_ID)))
    return CtHeader(identity, form, (SliceHeader(slope, intercept, geometry, marks, doubt, scan),))


@lru_cache(maxsize=256)
def _series_fields(
    fields: tuple[tuple[bytes, bytes] | None, ...],
) -> tuple[PixelForm, float, float, tuple[Any, ...], tuple[str, ...], str, ScanFacts]:
    """Check :data:`SERIES_FIELDS` and return what they say. Nearly all slices of a series share it, so it is cached.

    The result is the pixel form, slope, intercept, a slice's geometry without its position, marks, doubt, and how the
    series was made.
    """
    values = {tag: field for tag, field in zip(SERIES_FIELDS, fields, strict=True) if field is not None}
    if (
        _text(values, SYNTAX) != EXPLICIT_LITTLE_ENDIAN
        or _text(values, CHARACTER_SET) not in ASCII_SETS
        or _text(values, MODALITY) != "CT"
        or _integer(values, SAMPLES) != 1
        or _text(values, PHOTOMETRIC) not in ("MONOCHROME1", "MONOCHROME2")
        or _text(values, FRAMES) not in ("", "1")
    ):
        raise _NotPlain
    unit = _text(values, UNIT)
    kind = "\\".join(value.strip() for value in _text(values, IMAGE_TYPE, several=True).split("\\"))
    classes = _text(values, CLASS), _text(values, META_CLASS)
    doubt = check_evidence(Evidence(*classes, kind, unit, _text(values, BURNED_IN)))
    allocated, stored, signed = (_integer(values, tag) for tag in (ALLOCATED, STORED, SIGNED))
    if signed not in (0, 1) or not 1 <= stored <= allocated or _integer(values, HIGH_BIT) != stored - 1:
        raise _NotPlain
    padding = None
    if PADDING in values:
        ends = [_integer(values, tag) for tag in (PADDING, PADDING_LIMIT) if tag in values]
        codes = [as_stored(end, allocated, signed == 1) for end in ends]
        padding = (min(codes), max(codes))
    form = PixelForm(_integer(values, ROWS), _integer(values, COLUMNS), 1, allocated, stored, signed == 1, padding)
    form.check()
    slope, intercept = _numbers(values, SLOPE, 1)[0], _numbers(values, INTERCEPT, 1)[0]
    if not slope or math.isnan(slope) or math.isnan(intercept):
        raise _NotPlain
    measures = (_numbers(values, ORIENTATION, 6), *_numbers(values, SPACING, 2), *_numbers(values, THICKNESS, 1))
    marks = (*(("lossy",) if _text(values, LOSSY) == "01" else ()), *unit_marks(unit))
    scan = describe_scan(ScanFields(**{name: _any_text(values, tag) for name, (tag, _) in SCAN_TEXTS.items()}))
    return form, slope, intercept, measures, marks, doubt, scan


def _any_text(values: dict[int, tuple[bytes, bytes]], tag: int) -> str:
    """Return a text in any character set, its values joined by a backslash. Only its ASCII letters can be relied on."""
    kind, value = values.get(tag, (b"", b""))
    parts = value.rstrip(b"\0 ").decode("latin-1").split("\\")
    if kind in (b"DS", b"IS") and value.strip() and not all(NUMBER.fullmatch(part.encode("latin-1")) for part in parts):
        raise _NotPlain
    return "\\".join(part.strip() for part in parts)


def _text(values: dict[int, tuple[bytes, bytes]], tag: int, *, several: bool = False) -> str:
    """Return a text without surrounding spaces, empty if it is missing."""
    if tag not in values:
        return ""
    value = values[tag][1].rstrip(b"\0 ")
    if not TEXT.fullmatch(value.replace(b"\\", b"") if several else value):
        raise _NotPlain
    return value.decode("ascii").strip()


def _integer(values: dict[int, tuple[bytes, bytes]], tag: int) -> int:
    kind, value = values.get(tag, (b"", b""))
    if len(value) != 2:
        raise _NotPlain
    return int.from_bytes(value, "little", signed=kind == b"SS")


def _numbers(values: dict[int, tuple[bytes, bytes]], tag: int, count: int) -> tuple[float, ...]:
    """Return ``count`` numbers, all NaN if the element is missing."""
    if tag not in values:
        return (math.nan,) * count
    parts = values[tag][1].split(b"\\")
    if len(parts) != count or not all(map(NUMBER.fullmatch, parts)):
        raise _NotPlain
    numbers = tuple(map(float, parts))
    if not all(map(math.isfinite, numbers)):
        raise _NotPlain
    return numbers
