"""The header of a CT file: its identifiers, the form of its pixels, and each frame's rescale and position.

Both readers of headers (:mod:`common.dicom.plain`, :mod:`common.dicom.header`) return these types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from common.dicom.errors import DicomError
from common.dicom.geometry import SliceGeometry
from common.dicom.scan import ScanFacts

MAX_SIDE = 4096
MAX_PIXELS = 2**28  # of all frames: 1,024 of 512 x 512
BITS_ALLOCATED = (8, 16)  # 16 is the standard's only value for CT (PS3.3 C.8.2.1); 8 comes with lossy JPEG


NOT_SAID = ScanFacts()  # a header without any of the fields


class Identity(NamedTuple):
    """A file's own identifiers. They are written to the user's map of ids and nowhere else."""

    patient_id: str
    study_id: str
    series_id: str
    instance_id: str


class PixelForm(NamedTuple):
    """How the pixels of all frames are stored. ``padding`` is the range of stored values without a measurement."""

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    padding: tuple[int, int] | None

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.bits_allocated // 8

    def check(self) -> None:
        """Raise DicomError if the fields are out of range or contradict each other."""
        if not (0 < self.rows <= MAX_SIDE and 0 < self.columns <= MAX_SIDE):
            raise DicomError("pixel_format", f"Rows or Columns is not from 1 to {MAX_SIDE}, which are read")
        if self.frames < 1 or self.frames * self.rows * self.columns > MAX_PIXELS:
            raise DicomError("too_large", f"all frames together have more than {MAX_PIXELS} pixels, or none")
        if self.bits_allocated not in BITS_ALLOCATED:
            raise DicomError("pixel_format", "BitsAllocated is not 8 or 16, which are read")


@dataclass(frozen=True)
class SliceHeader:
    """One frame's rescale and position, and how its series was made.

    ``marks`` names what is unusual about it. ``doubt`` is what :func:`common.dicom.evidence.check_picture` must settle
    by the pixels.
    """

    slope: float
    intercept: float
    geometry: SliceGeometry
    marks: tuple[str, ...] = ()
    doubt: str = ""
    scan: ScanFacts = NOT_SAID


def stored_as(form: PixelForm, header: SliceHeader) -> str:
    """Return BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept as text, for example ``12/0/1/-1024``."""
    return f"{form.bits_stored}/{int(form.signed)}/{header.slope:.6g}/{header.intercept:.6g}"


@dataclass(frozen=True)
class CtHeader:
    """Everything in a file but its pixels. A frame that gives no image has a DicomError in place of a header."""

    identity: Identity
    form: PixelForm
    frames: tuple[SliceHeader | DicomError, ...]


def as_stored(value: int, bits_allocated: int, signed: bool) -> int:
    """Return a padding value in the pixels' type. Files often store -2000 as its unsigned counterpart 63536."""
    value &= (1 << bits_allocated) - 1
    return value - (1 << bits_allocated) if signed and value >> (bits_allocated - 1) else value
