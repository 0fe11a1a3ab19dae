"""One DICOM file to one image file and a record of it; the function that worker processes run."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import cv2
import numpy as np
import xxhash

from common.datasets.image_files import COMPRESSED_SHARE, SUFFIXES, encode_image
from common.dicom.decoding import Stored
from common.dicom.errors import DicomError
from common.dicom.evidence import check_picture
from common.dicom.hounsfield import hounsfield
from common.dicom.pictures import lowest_and_highest, resize_area, window
from common.dicom.reading import CtFile, quiet_pydicom, read_dicom
from common.dicom.slices import Identity, SliceHeader, stored_as
from common.errors import WorkError
from common.preprocessing.crop import find_head
from common.preprocessing.isolation import stop_if_unwanted
from common.preprocessing.pseudonyms import Pseudonyms, framed
from common.preprocessing.sources import SourceFile, announce, read_source

NOT_KEPT = "not_kept"
HEADER_HASH_BYTES = 8
FILES_AHEAD = 2  # that the disk is asked for while one is converted
SOLID_HU = -500  # what is denser is no air


@dataclass(frozen=True)
class ImageForm:
    """What to write: int16 HU, or with ``windows`` (centre, width) their pictures as ``dtype``, a channel each.

    ``size``: pixels of the longer side, padded to a square with air; 0: as stored. ``file_format``: npy or blosc2.
    ``crop``: only the head, air in place of all else (:mod:`common.preprocessing.crop`).
    """

    size: int
    windows: tuple[tuple[float, float], ...]
    dtype: str
    file_format: str = "npy"
    crop: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the image files."""
        return SUFFIXES[self.file_format]

    @property
    def name(self) -> str:
        return "window" if self.windows else "hu"

    def stored_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of the stored image for a box of that many pixels."""
        sides = (self.size, self.size) if self.size else (rows, columns)
        return sides + (len(self.windows),) * bool(self.windows)

    def bytes_needed(self, source_bytes: int, images: int) -> int:
        """Return the disk space of ``images`` converted files; 16-bit pixels make up nearly all of a source file."""
        hu_bytes = images * 2 * self.size**2 if self.size else source_bytes
        share = COMPRESSED_SHARE if self.file_format == "blosc2" else 1
        return int(hu_bytes * max(1, len(self.windows)) * np.dtype(self.dtype).itemsize // 2 * share)


@dataclass(frozen=True)
class Task:
    """A file to convert, and the folder its images go to.

    ``own_id``: the image's own name where that is a pseudonym already, else "", and its id becomes a keyed hash of its
    SOPInstanceUID, or of its path where it has none or ``by_path`` (several files have the same). ``source_id`` is what
    the journal knows it by; ``file_bytes`` and ``mtime_ns`` tell a later run whether the file has changed. Without a
    ``folder`` the file is only read: its records are the same, and nothing is written.
    """

    own_id: str
    source_id: str
    split: str
    file_bytes: int
    mtime_ns: int
    source: SourceFile
    folder: Path | None
    by_path: bool = False


@dataclass
class Record:
    """What is known of an image after its file's conversion; ``reason`` is empty where there is one.

    ``source_id`` is the name of the file here, which gave ``frames`` records: one, or one for each ``frame`` (1..).
    Identifiers of patient, study, series and instance are pseudonyms. ``pixel_form`` is what the header says of the
    stored numbers: BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept. ``rows`` to ``solid``, the share of
    pixels above :data:`SOLID_HU`, and ``digest``, a hash of shape and HU, describe the picture as scanned; ``crop_…``
    the box of it that was kept, and ``image_hash`` and ``image_bytes`` the image as stored. Positions, spacings and
    thickness in mm. ``header_hash`` is a keyed hash of all that the file holds before its pixels: with ``digest`` it
    tells whether another copy of the file is the same, or a bit of it was lost on the way. ``identity`` holds the
    file's own identifiers, for the user's map of ids alone: it is written nowhere else.
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
    header_hash: str = ""
    pixel_form: str = ""
    rows: int = 0
    columns: int = 0
    mended: str = ""
    hu_min: int = 0
    hu_max: int = 0
    hu_mean: float = np.nan
    solid: float = np.nan
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


def convert_tasks(tasks: Sequence[Task], form: ImageForm, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert some files, one after the other; WorkError only where writing fails.

    While one is converted the disk reads those that follow.
    """
    records = []
    with quiet_pydicom() as messages:
        for task, coming in zip(tasks, [*tasks[FILES_AHEAD:], *[None] * FILES_AHEAD], strict=False):
            if coming is not None:
                announce(coming.source)
            stop_if_unwanted()
            messages.clear()
            records += _convert_file(task, form, pseudonyms, messages)
    return records


def read_persons(sources: Sequence[SourceFile]) -> list[tuple[str, str]]:
    """Return PatientID and StudyInstanceUID of some files as they stand there; of what is no CT image neither."""
    found = []
    with quiet_pydicom():
        for source in sources:
            try:
                identity = read_dicom(read_source(source)).header.identity
                found.append((identity.patient_id, identity.study_id))
            except Exception:  # the conversion says what is wrong with it
                found.append(("", ""))
    return found


def _convert_file(task: Task, form: ImageForm, pseudonyms: Pseudonyms, messages: Sequence[str]) -> list[Record]:
    """Convert one file; return a record for each image of it, or for the failure of the file.

    What is wrong with it becomes the record's reason; WorkError only where writing fails. ``messages`` gets what
    pydicom remarks meanwhile.
    """
    records: list[Record] = []
    try:
        for record, image in _read_images(task, form, pseudonyms):
            if image is not None:
                record.image_bytes = (
                    sum(memoryview(part).nbytes for part in encode_image(image, form.suffix))
                    if task.folder is None
                    else write_image(task.folder / f"{record.image_id}{form.suffix}", image)
                )
            records.append(record)
    except DicomError as error:
        records = [failure(task, error.reason, str(error))]
    except WorkError:
        raise
    except MemoryError:
        records = [failure(task, "memory", "reading it took more memory than the limit")]
    except Exception as error:  # one file, however damaged, never stops the others
        records = [failure(task, "unreadable", f"not readable as a CT image ({type(error).__name__})")]
    for number, record in enumerate(records, start=1):
        record.frame, record.frames, record.warnings = number, len(records), len(messages)
    return records


def _read_images(task: Task, form: ImageForm, pseudonyms: Pseudonyms) -> Iterator[tuple[Record, np.ndarray | None]]:
    """Yield a record for each frame of a file, and the image to store where there is one."""
    file = read_dicom(read_source(task.source))
    headers = file.header.frames
    header_hash = hashlib.blake2b(file.header_bytes, key=pseudonyms.key, digest_size=HEADER_HASH_BYTES).hexdigest()
    for number, (header, stored) in enumerate(zip(headers, file.frames(), strict=True), start=1):
        try:
            image_hu, header, marks = _picture(header, stored, file)
        except DicomError as error:
            yield failure(task, error.reason, str(error)), None
            continue
        record = _new_record(task)
        _describe_header(record, file, header, pseudonyms)
        record.image_id = (
            framed(task.own_id, number, len(headers))
            if task.own_id
            else pseudonyms.image(instance_of(record.instance_id, task.source_id, by_path=task.by_path), number)
        )
        record.header_hash = header_hash
        record.mended = ";".join(marks)
        yield record, describe_image(image_hu, form, record)


def _picture(
    header: SliceHeader | DicomError, stored: Stored | DicomError, file: CtFile
) -> tuple[np.ndarray, SliceHeader, tuple[str, ...]]:
    """Return a frame's picture in HU, its header and all marks; DicomError where it has none or is no slice."""
    for part in (header, stored):
        if isinstance(part, DicomError):
            raise part
    header = replace(header, marks=tuple(dict.fromkeys((*stored.marks, *header.marks))))
    image_hu, mended = hounsfield(stored.container, file.header.form, header)
    check_picture(image_hu, header)
    return image_hu, header, tuple(dict.fromkeys((*mended, *header.marks)))


def failure(task: Task, reason: str, message: str) -> Record:
    """Return the record of a file, or of one frame of it, that gave no image and so has no id."""
    record = _new_record(task)
    record.reason, record.message = reason, message
    return record


def instance_of(instance_id: str, source_id: str, *, by_path: bool) -> str:
    """Return what a file's images get their ids from: a pseudonym of its SOPInstanceUID, or of its path."""
    return source_id if by_path or not instance_id else instance_id


def _new_record(task: Task) -> Record:
    return Record("", task.source_id, task.split, task.file_bytes, task.mtime_ns)


def _describe_header(record: Record, file: CtFile, header: SliceHeader, pseudonyms: Pseudonyms) -> None:
    """Note in ``record`` whose picture it is, where it lies and how its pixels were stored."""
    identity, geometry = file.header.identity, header.geometry
    record.identity = identity
    record.patient_id = pseudonyms.of("patient", identity.patient_id)
    record.study_id = pseudonyms.of("study", identity.study_id)
    record.series_id = pseudonyms.of("series", identity.series_id)
    record.instance_id = pseudonyms.of("instance", identity.instance_id)
    record.x, record.y, record.z = geometry.position
    record.row_x, record.row_y, record.row_z = geometry.orientation[:3]
    record.column_x, record.column_y, record.column_z = geometry.orientation[3:]
    record.row_spacing_mm, record.column_spacing_mm = geometry.row_spacing_mm, geometry.column_spacing_mm
    record.thickness_mm = geometry.thickness_mm
    record.pixel_form = stored_as(file.header.form, header)


def describe_image(image_hu: np.ndarray, form: ImageForm, record: Record) -> np.ndarray:
    """Note in ``record`` what the picture shows, int16 HU (H, W); return the image to store."""
    record.rows, record.columns = image_hu.shape
    record.hu_min, record.hu_max = lowest_and_highest(image_hu)
    record.hu_mean = cv2.sumElems(image_hu)[0] / image_hu.size
    record.solid = np.count_nonzero(image_hu > SOLID_HU) / image_hu.size
    record.digest = picture_hash(image_hu)
    record.crop_rows, record.crop_columns = image_hu.shape
    kept = image_hu
    if form.crop:
        head = find_head(image_hu, record.row_spacing_mm, record.column_spacing_mm)
        record.crop_top, record.crop_left = head.top, head.left
        record.crop_rows, record.crop_columns = head.rows, head.columns
        kept = head.apply(image_hu)
    image = apply_form(kept, form)
    record.image_hash = record.digest if image is image_hu else picture_hash(image)
    return image


def apply_form(image_hu: np.ndarray, form: ImageForm) -> np.ndarray:
    """Return the image as it is stored: int16 HU (H, W), or windows float32 0..1 or uint8 0..255 (H, W, C)."""
    image_hu = resize_area(image_hu, form.size)
    if not form.windows:
        return image_hu
    picture = np.stack([window(image_hu, center, width) for center, width in form.windows], axis=-1)
    if form.dtype == "uint8":
        return np.rint(picture * np.float32(255)).astype(np.uint8)
    return picture


def picture_hash(image: np.ndarray) -> str:
    """Return a hash of shape and pixels, (H, W) or (H, W, C): equal only for pictures equal to the last pixel.

    XXH3 (128 bits) takes 17 microseconds for 512 x 512, sha256 350, more than all the rest of a conversion.
    """
    digest = xxhash.xxh3_128(np.array(image.shape, dtype="<i8"))
    digest.update(np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<")))
    return digest.hexdigest()


def write_image(path: Path, image: np.ndarray) -> int:
    """Write an image file in the form of its suffix, whole or not at all; return its size in bytes.

    Unlike ``common.files`` it doesn't wait for the disk, which would take longer than the rest of the conversion; a
    later run compares the size and converts again what a lost power supply left cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        size = 0
        with temporary.open("wb", buffering=0) as file:
            for part in encode_image(image, path.suffix):
                size += _write_all(file, part)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkError(f"{path.parent}: the disk is full; make space and start again to go on") from None
        raise WorkError(f"{path}: cannot be written ({error.strerror}); check the folder's owner and mode") from None
    return size


def _write_all(file: io.FileIO, part: bytes | memoryview) -> int:
    """Write all of ``part`` to an unbuffered file, which may take it in pieces; return its bytes."""
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]
    return len(part)
