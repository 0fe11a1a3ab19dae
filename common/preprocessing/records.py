"""A file to convert, the form of its images, and the record of an image or a failure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from common.datasets.image_files import COMPRESSED_SHARE, SUFFIXES
from common.dicom.slices import Identity
from common.preprocessing.sources import SourceFile

NOT_KEPT = "not_kept"


@dataclass(frozen=True)
class ImageForm:
    """The form of the stored images, and whether records hold age and sex."""

    size: int  # pixels of the longer side, padded to a square with air; 0: as scanned
    windows: tuple[tuple[float, float], ...]  # (centre, width) of each channel; empty: int16 HU
    dtype: str
    file_format: str = "npy"  # or blosc2
    crop: bool = False  # to the head, see common.preprocessing.crop
    demographics: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the image files."""
        return SUFFIXES[self.file_format]

    @property
    def name(self) -> str:
        return "window" if self.windows else "hu"

    def stored_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the stored image for a box of ``rows`` x ``columns`` pixels."""
        sides = (self.size, self.size) if self.size else (rows, columns)
        return sides + (len(self.windows),) * bool(self.windows)

    def bytes_needed(self, source_bytes: int, images: int) -> int:
        """Return the bytes of ``images`` converted files. Source files are nearly all 16-bit pixels."""
        hu_bytes = images * 2 * self.size**2 if self.size else source_bytes
        share = COMPRESSED_SHARE if self.file_format == "blosc2" else 1
        return int(hu_bytes * max(1, len(self.windows)) * np.dtype(self.dtype).itemsize // 2 * share)


@dataclass(frozen=True)
class Task:
    """A file to convert, and the folder for its images.

    An image whose name is a pseudonym already (``own_id``) keeps it as id. Any other id is a keyed hash of the file's
    SOPInstanceUID, or of its path if it has no UID or shares it with other files (``by_path``).
    """

    own_id: str  # "" if the name is no pseudonym
    source_id: str  # identifies the file in the journal
    split: str
    file_bytes: int  # size and mtime_ns tell a later run whether the file has changed
    mtime_ns: int
    source: SourceFile
    folder: Path | None  # None: only read the file, for the same records
    by_path: bool = False


@dataclass
class Record:
    """What the conversion of a file found out about one image, or about a failure, which has a ``reason``.

    - The file ``source_id`` gave ``frames`` records, one for each ``frame`` (1..).
    - The ids of patient, study, series and instance are pseudonyms. ``identity`` has the file's own identifiers, which
      are written only to the user's map of ids.
    - Positions, spacings and thickness are in mm.
    - ``header_hash`` is a keyed hash of all bytes before the pixels. With ``digest`` it tells whether two copies of a
      file are equal.
    - ``pixel_form`` is BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept.
    - ``rows`` to ``digest`` describe the picture as scanned: ``solid`` is the share of pixels above -500 HU, ``digest``
      a hash of shape and HU.
    - ``vendor`` to ``series_number`` say how the series was made, see :class:`common.dicom.scan.ScanFacts`. ``age`` and
      ``sex`` are empty unless ``ImageForm.demographics`` asks for them.
    - ``skull_mm2`` is the area that bone encloses, see :func:`common.preprocessing.skull.skull_area`.
    - ``crop_…`` is the box that was kept. ``image_hash`` and ``image_bytes`` are those of the stored image.
    """

    image_id: str
    source_id: str
    split: str
    file_bytes: int
    mtime_ns: int
    frame: int = 1
    frames: int = 1
    reason: str = ""
    message: str = ""
    patient_id: str = ""
    study_id: str = ""
    series_id: str = ""
    instance_id: str = ""
    x: float = np.nan
    y: float = np.nan
    z: float = np.nan
    row_x: float = np.nan
    row_y: float = np.nan
    row_z: float = np.nan
    column_x: float = np.nan
    column_y: float = np.nan
    column_z: float = np.nan
    row_spacing_mm: float = np.nan
    column_spacing_mm: float = np.nan
    thickness_mm: float = np.nan
    vendor: str = ""
    kernel: str = ""
    contrast: str = ""
    reconstruction: str = ""
    energy: str = ""
    series_number: int = -1
    age: str = ""
    sex: str = ""
    header_hash: str = ""
    pixel_form: str = ""
    rows: int = 0
    columns: int = 0
    mended: str = ""
    hu_min: int = 0
    hu_max: int = 0
    hu_mean: float = np.nan
    solid: float = np.nan
    skull_mm2: float = np.nan
    digest: str = ""
    crop_top: int = 0
    crop_left: int = 0
    crop_rows: int = 0
    crop_columns: int = 0
    image_hash: str = ""
    image_bytes: int = 0
    warnings: int = 0
    identity: Identity | None = field(default=None, repr=False, metadata={NOT_KEPT: True})


KEPT = tuple(one.name for one in fields(Record) if NOT_KEPT not in one.metadata)  # what may be written to a dataset


def failure(task: Task, reason: str, message: str) -> Record:
    """Return the record of a file or frame that gave no image. It has no id."""
    record = new_record(task)
    record.reason, record.message = reason, message
    return record


def instance_of(instance_id: str, source_id: str, *, by_path: bool) -> str:
    """Return the pseudonym that gives a file's images their ids: that of its SOPInstanceUID or of its path."""
    return source_id if by_path or not instance_id else instance_id


def new_record(task: Task) -> Record:
    return Record("", task.source_id, task.split, task.file_bytes, task.mtime_ns)
