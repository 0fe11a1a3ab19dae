"""One DICOM file to one ``.npy`` image and a record of it; the function that worker processes run."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.dicom.errors import DicomError
from common.dicom.geometry import slice_geometry
from common.dicom.hounsfield import hounsfield, pixel_form
from common.dicom.pictures import resize_area, window
from common.dicom.reading import quiet_pydicom, read_dicom
from common.errors import WorkError
from common.preprocessing.pseudonyms import Pseudonyms
from common.preprocessing.sources import SourceFile, read_source

if TYPE_CHECKING:
    from pydicom import Dataset

FILES_PER_CHUNK = 32
TEXT_LENGTH = 64  # the longest value that DICOM allows for the identifiers kept here
SOLID_HU = -500  # what is denser is no air


@dataclass(frozen=True)
class ImageForm:
    """What to write: int16 HU, or with ``windows`` (centre, width) their pictures as ``dtype``, a channel each.

    ``size``: pixels of the longer side, padded to a square with air; 0: as stored.
    """

    size: int
    windows: tuple[tuple[float, float], ...]
    dtype: str

    @property
    def name(self) -> str:
        return "window" if self.windows else "hu"

    def bytes_needed(self, source_bytes: int, images: int) -> int:
        """Return the disk space of ``images`` converted files; 16-bit pixels make up nearly all of a source file."""
        hu_bytes = images * 2 * self.size**2 if self.size else source_bytes
        return hu_bytes * max(1, len(self.windows)) * np.dtype(self.dtype).itemsize // 2


@dataclass(frozen=True)
class Task:
    """A file to convert, and the folder its images go to.

    ``image_id`` is the id that its name gives, ``source_id`` what the journal knows it by; ``file_bytes`` and
    ``mtime_ns`` tell a later run whether the file has changed.
    """

    image_id: str
    source_id: str
    split: str
    file_bytes: int
    mtime_ns: int
    source: SourceFile
    folder: Path


@dataclass
class Record:
    """What is known of an image after its file's conversion; ``reason`` is empty where there is one.

    ``source_id`` is the name of the file here, which gave ``frames`` records: one, or one for each ``frame`` (1..).
    Identifiers of patient, study, series and instance are pseudonyms. ``pixel_form`` is what the header says of the
    stored numbers: BitsStored/PixelRepresentation/RescaleSlope/RescaleIntercept. ``rows`` to ``solid``, the share of
    pixels above :data:`SOLID_HU`, and ``digest``, a hash of shape and HU, describe the picture as scanned; ``crop_…``
    the box of it that was kept, and ``image_hash`` and ``image_bytes`` the image as stored. Positions, spacings and
    thickness in mm.
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


def convert_files(tasks: Sequence[Task], form: ImageForm, jobs: int, pseudonyms: Pseudonyms) -> Iterator[list[Record]]:
    """Convert files in ``jobs`` processes (1: in this one); yield records in chunks as they are finished.

    Raises WorkError where an image can't be written or a process is killed. Everything yielded before is on the disk.
    """
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    size = max(1, min(FILES_PER_CHUNK, len(tasks) // (4 * jobs)))
    chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    calls = (joblib.delayed(convert_chunk)(chunk, form, pseudonyms) for chunk in chunks)
    parallel = joblib.Parallel(
        n_jobs=max(1, min(jobs, len(chunks))), return_as="generator_unordered", pre_dispatch="3*n_jobs", batch_size=1
    )
    try:
        yield from parallel(calls)
    except TerminatedWorkerError:
        raise WorkError(
            "a worker process was killed (out of memory?); start again with a smaller --n_jobs to go on"
        ) from None


def convert_chunk(tasks: Iterable[Task], form: ImageForm, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert some files, one after the other."""
    return [record for task in tasks for record in convert_file(task, form, pseudonyms)]


def convert_file(task: Task, form: ImageForm, pseudonyms: Pseudonyms) -> list[Record]:
    """Convert one file; return a record for each image of it, or for the failure.

    What is wrong with it becomes the record's reason; WorkError only where writing fails.
    """
    record = Record("", task.source_id, task.split, task.file_bytes, task.mtime_ns)
    with quiet_pydicom() as messages:
        try:
            image = _read_image(task, form, pseudonyms, record)
        except DicomError as error:
            record.reason, record.message = error.reason, str(error)
        except Exception as error:  # one file, however damaged, never stops the others
            record.reason, record.message = "unreadable", f"not readable as a CT image ({type(error).__name__})"
    record.warnings = len(messages)
    if not record.reason:
        record.image_bytes = write_image(task.folder / f"{record.image_id}.npy", image)
    else:
        record.image_id = ""  # a name that nobody has compared with the header
    return [record]


def _read_image(task: Task, form: ImageForm, pseudonyms: Pseudonyms, record: Record) -> np.ndarray:
    dataset = read_dicom(read_source(task.source))
    record.image_id = pseudonyms.name(task.image_id, dataset)
    image_hu, mended = hounsfield(dataset)
    geometry = slice_geometry(dataset)
    record.patient_id = pseudonyms.of("patient", _identifier(dataset, "PatientID"))
    record.study_id = pseudonyms.of("study", _identifier(dataset, "StudyInstanceUID"))
    record.series_id = pseudonyms.of("series", _identifier(dataset, "SeriesInstanceUID"))
    record.instance_id = pseudonyms.of("instance", _identifier(dataset, "SOPInstanceUID"))
    record.x, record.y, record.z = geometry.position
    record.row_x, record.row_y, record.row_z = geometry.orientation[:3]
    record.column_x, record.column_y, record.column_z = geometry.orientation[3:]
    record.row_spacing_mm, record.column_spacing_mm = geometry.row_spacing_mm, geometry.column_spacing_mm
    record.thickness_mm = geometry.thickness_mm
    record.pixel_form = pixel_form(dataset)
    record.mended = ";".join(mended)
    return describe_image(image_hu, form, record)


def describe_image(image_hu: np.ndarray, form: ImageForm, record: Record) -> np.ndarray:
    """Note in ``record`` what the picture shows, int16 HU (H, W); return the image to store."""
    record.rows, record.columns = image_hu.shape
    record.hu_min, record.hu_max, record.hu_mean = int(image_hu.min()), int(image_hu.max()), float(image_hu.mean())
    record.solid = np.count_nonzero(image_hu > SOLID_HU) / image_hu.size
    record.digest = picture_hash(image_hu)
    record.crop_rows, record.crop_columns = image_hu.shape
    image = apply_form(image_hu, form)
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
    """Return a hash of shape and pixels, (H, W) or (H, W, C): equal only for pictures equal to the last pixel."""
    digest = hashlib.blake2b(np.array(image.shape, dtype="<i8").tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("<")))
    return digest.hexdigest()


def write_image(path: Path, image: np.ndarray) -> int:
    """Write a ``.npy`` file, whole or not at all; return its size in bytes.

    Unlike ``common.files`` it doesn't wait for the disk, which would take longer than the rest of the conversion; a
    later run compares the size and converts again what a lost power supply left cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, image, allow_pickle=False)
            size = file.tell()
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkError(f"{path.parent}: the disk is full; make space and start again to go on") from None
        raise WorkError(f"{path}: cannot be written ({error.strerror}); check the folder's owner and mode") from None
    return size


def _identifier(dataset: Dataset, keyword: str) -> str:
    """Return an identifier as one line of printable text; empty where it is missing."""
    try:
        text = str(dataset.get(keyword) or "")
    except Exception:  # pydicom converts on access and raises whatever a damaged value makes it raise
        return ""
    return "".join(character for character in text if character.isprintable()).strip()[:TEXT_LENGTH]
