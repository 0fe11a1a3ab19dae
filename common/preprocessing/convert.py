"""Convert DICOM and NIfTI files to images and records. Worker processes run this."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import xxhash

from common.datasets.image_files import encode_image
from common.dicom.decoding import Stored
from common.dicom.errors import DicomError
from common.dicom.evidence import check_picture
from common.dicom.hounsfield import hounsfield
from common.dicom.nifti import NiftiFile, read_nifti
from common.dicom.pictures import lowest_and_highest, resize_area, window
from common.dicom.reading import CtFile, quiet_pydicom, read_dicom
from common.dicom.scan import ScanFacts
from common.dicom.slices import SliceHeader, stored_as
from common.errors import WorkError
from common.preprocessing.crop import find_head
from common.preprocessing.isolation import stop_if_unwanted
from common.preprocessing.packed import is_nifti
from common.preprocessing.pseudonyms import Pseudonyms, framed
from common.preprocessing.records import ImageForm, Record, Task, failure, instance_of, new_record
from common.preprocessing.skull import skull_area
from common.preprocessing.sources import SourceFile, announce, read_source

HEADER_HASH_BYTES = 8
FILES_AHEAD = 2  # files that the disk reads while one is converted
SOLID_HU = -500  # denser pixels are not air


def convert_tasks(tasks: Sequence[Task], form: ImageForm, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert files one after the other, while the disk reads the next ones. Raise WorkError only if writing fails."""
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
    """Return the PatientID and StudyInstanceUID of each file, or two empty texts for a file that is no CT image."""
    found = []
    with quiet_pydicom():
        for source in sources:
            try:
                identity = read_dicom(read_source(source)).header.identity
                found.append((identity.patient_id, identity.study_id))
            except Exception:  # the conversion reports what is wrong with the file
                found.append(("", ""))
    return found


def _convert_file(task: Task, form: ImageForm, pseudonyms: Pseudonyms, messages: Sequence[str]) -> list[Record]:
    """Convert one file. Return a record for each of its images, or one record that says why it failed.

    Meanwhile pydicom's warnings arrive in ``messages``. Raise WorkError only if writing fails.
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
    except Exception as error:  # a damaged file must not stop the others
        records = [failure(task, "unreadable", f"not readable as a CT image ({type(error).__name__})")]
    for number, record in enumerate(records, start=1):
        record.frame, record.frames, record.warnings = number, len(records), len(messages)
    return records


def _read_images(task: Task, form: ImageForm, pseudonyms: Pseudonyms) -> Iterator[tuple[Record, np.ndarray | None]]:
    """Yield each frame's record and the image to store. The image is None for a frame that failed."""
    content = read_source(task.source)
    file = read_nifti(content, task.source_id) if is_nifti(content) else read_dicom(content)
    headers = file.header.frames
    header_hash = hashlib.blake2b(file.header_bytes, key=pseudonyms.key, digest_size=HEADER_HASH_BYTES).hexdigest()
    for number, (header, stored) in enumerate(zip(headers, file.frames(), strict=True), start=1):
        try:
            image_hu, header, marks = _convert_frame(header, stored, file)
        except DicomError as error:
            yield failure(task, error.reason, str(error)), None
            continue
        record = new_record(task)
        _describe_header(record, file, header, pseudonyms)
        _describe_scan(record, header.scan, demographics=form.demographics)
        record.image_id = (
            framed(task.own_id, number, len(headers))
            if task.own_id
            else pseudonyms.image(instance_of(record.instance_id, task.source_id, by_path=task.by_path), number)
        )
        record.header_hash = header_hash
        record.mended = ";".join(marks)
        yield record, describe_image(image_hu, form, record)


def _convert_frame(
    header: SliceHeader | DicomError, stored: Stored | DicomError, file: CtFile | NiftiFile
) -> tuple[np.ndarray, SliceHeader, tuple[str, ...]]:
    """Return a frame's image in HU, its header and all its marks; DicomError if it is no CT slice."""
    for part in (header, stored):
        if isinstance(part, DicomError):
            raise part
    header = replace(header, marks=tuple(dict.fromkeys((*stored.marks, *header.marks))))
    image_hu, mended = hounsfield(stored.container, file.header.form, header)
    check_picture(image_hu, header)
    return image_hu, header, tuple(dict.fromkeys((*mended, *header.marks)))


def _describe_header(record: Record, file: CtFile | NiftiFile, header: SliceHeader, pseudonyms: Pseudonyms) -> None:
    """Write to ``record`` whose slice it is, where it lies and how its pixels were stored."""
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


def _describe_scan(record: Record, scan: ScanFacts, *, demographics: bool) -> None:
    """Write to ``record`` how the series was made, and age and sex if they are asked for."""
    for name, value in scan._asdict().items():
        if demographics or name not in ("age", "sex"):
            setattr(record, name, value)


def describe_image(image_hu: np.ndarray, form: ImageForm, record: Record) -> np.ndarray:
    """Write the measures of an image, int16 HU (H, W), to ``record``. Return the image to store."""
    record.rows, record.columns = image_hu.shape
    record.hu_min, record.hu_max = lowest_and_highest(image_hu)
    record.hu_mean = cv2.sumElems(image_hu)[0] / image_hu.size
    record.solid = np.count_nonzero(image_hu > SOLID_HU) / image_hu.size
    record.skull_mm2 = round(skull_area(image_hu, record.row_spacing_mm, record.column_spacing_mm), 1)
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
    """Return the image to store: int16 HU (H, W), or windows as float32 in 0..1 or uint8 (H, W, C)."""
    image_hu = resize_area(image_hu, form.size)
    if not form.windows:
        return image_hu
    picture = np.stack([window(image_hu, center, width) for center, width in form.windows], axis=-1)
    if form.dtype == "uint8":
        return np.rint(picture * np.float32(255)).astype(np.uint8)
    return picture


def picture_hash(image: np.ndarray) -> str:
    """Return a hash of the shape and pixels of an image, (H, W) or (H, W, C). Only identical images share it.

    XXH3 (128 bits) takes 17 microseconds for 512 x 512. sha256 takes 350, more than the rest of a conversion.
    """
    digest = xxhash.xxh3_128(np.array(image.shape, dtype="<i8"))
    digest.update(np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<")))
    return digest.hexdigest()


def write_image(path: Path, image: np.ndarray) -> int:
    """Write an image file in the format of its suffix, completely or not at all. Return its size in bytes.

    Unlike ``common.files`` this doesn't wait for the disk, which would take longer than the conversion. After a power
    failure the next run finds truncated files by their size and converts them again.
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
    """Write ``part`` to an unbuffered file, which may take it in pieces. Return its number of bytes."""
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]
    return len(part)
