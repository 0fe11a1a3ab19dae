"""Add what a scanner adds to anatomy: noise, streaks, motion, head holder, pixel form and DICOM header."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from rsna.phantom.anatomy import Field, blend, ramp

AIR_HU = -1024
PADDING_RAW = -2000
POOL_SIDE = 1024
IMPLEMENTATION_UID = "1.2.826.0.1.3680043.8.498.2019"  # under pydicom's root


@dataclass(frozen=True)
class PixelForm:
    """How a scanner stores Hounsfield units: BitsStored, PixelRepresentation, RescaleIntercept, and whether wrapped."""

    bits_stored: int
    signed: int
    intercept: int
    wrapped: bool = False

    @property
    def name(self) -> str:
        return f"{self.bits_stored}/{self.signed}/{self.intercept}"

    @property
    def hu_range(self) -> tuple[int, int]:
        """The lowest and highest HU that this form can hold, never below air."""
        if self.wrapped:
            return -1000, 3095
        low = max(AIR_HU, self.intercept) if not self.signed else AIR_HU
        high = (1 << (self.bits_stored - self.signed)) - 1 + self.intercept
        return low, min(high, 3071)

    def encode(self, hu: NDArray[np.int16]) -> NDArray[np.int16] | NDArray[np.uint16]:
        """Return the values to store for an image in HU that lies within :attr:`hu_range`."""
        if self.wrapped:  # readers add 1000, take 4096 off where it is reached, and subtract 1000
            return (hu.astype(np.int32) % 4096).astype(np.uint16)
        raw = hu.astype(np.int32) - self.intercept
        return raw.astype(np.int16 if self.signed else np.uint16)


# How the competition's training images are stored; the numbers are images of stage 1.
PIXEL_FORMS: dict[PixelForm, int] = {
    PixelForm(12, 0, -1024): 326_639,
    PixelForm(16, 1, -1024): 414_096,
    PixelForm(12, 0, -1000): 6_681,
    PixelForm(16, 1, 0): 2_951,
    PixelForm(12, 1, 0): 2_312,
    PixelForm(12, 0, 0, wrapped=True): 73,
    PixelForm(12, 0, 1, wrapped=True): 50,
}


@functools.cache
def noise_pool() -> list[Field]:
    """Two large fields of noise with a CT's spectrum (little power at low and at the highest frequencies), unit σ."""
    rng = np.random.default_rng(20190905)
    fy, fx = np.meshgrid(np.fft.fftfreq(POOL_SIDE), np.fft.rfftfreq(POOL_SIDE), indexing="ij")
    frequency = np.hypot(fx, fy)
    spectrum = np.sqrt(frequency + 0.004) * np.exp(-((frequency / 0.2) ** 2))
    fields = []
    for _ in range(2):
        field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(POOL_SIDE, POOL_SIDE))) * spectrum)
        fields.append((field / field.std()).astype(np.float32))
    return fields


@functools.cache
def fan_pool() -> Field:
    """Streaks that run out from the middle of a 1024² picture, weaker with the distance; about unit σ at 60 pixels."""
    rng = np.random.default_rng(20191113)
    count = 720
    profile = cv2.GaussianBlur(rng.normal(size=(1, 3 * count)).astype(np.float32), (0, 0), 3)[0, count : 2 * count]
    profile = (profile - profile.mean()) / profile.std()
    axis = np.arange(POOL_SIDE, dtype=np.float32) - POOL_SIDE / 2 + 0.5
    x, y = np.meshgrid(axis, axis)
    angle = ((np.arctan2(y, x) + np.pi) / (2 * np.pi) * count).astype(np.int32) % count
    radius = np.hypot(x, y)
    fan = profile[angle] * np.clip(radius / 12, 0, 1) * 60 / (radius + 25)
    return cv2.GaussianBlur(fan.astype(np.float32), (0, 0), 0.8)


def _crop(rng: np.random.Generator, pool: Field, shape: tuple[int, int]) -> Field:
    rows, columns = shape
    if rows > POOL_SIDE or columns > POOL_SIDE:  # for larger images the pool is mirrored
        grow = ((0, max(0, rows - POOL_SIDE)), (0, max(0, columns - POOL_SIDE)))
        pool = np.pad(pool, grow, mode="symmetric")
    top = int(rng.integers(0, pool.shape[0] - rows + 1))
    left = int(rng.integers(0, pool.shape[1] - columns + 1))
    return pool[top : top + rows, left : left + columns]


def noise(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """Correlated noise of unit σ: two crops of the pool, mixed, so that hardly two slices share a pattern."""
    angle = rng.uniform(0, 2 * np.pi)
    first, second = (_crop(rng, pool, shape) for pool in noise_pool())
    return cv2.addWeighted(first, np.cos(angle), second, np.sin(angle), 0)


def add_streaks(hu: Field, rng: np.random.Generator, sources: list[tuple[float, float]], strength_hu: float) -> None:
    """Add fans of streaks from dense bone at (row, column) ``sources`` in place, where there is tissue."""
    rows, columns = hu.shape
    fan = fan_pool()[:: int(rng.choice((-1, 1))), :: int(rng.choice((-1, 1)))]
    tissue = hu > -400
    for row, column in sources:
        top = int(np.clip(POOL_SIDE / 2 - row, 0, POOL_SIDE - rows))
        left = int(np.clip(POOL_SIDE / 2 - column, 0, POOL_SIDE - columns))
        hu += np.float32(strength_hu) * fan[top : top + rows, left : left + columns] * tissue


def add_motion(hu: Field, rng: np.random.Generator) -> Field:
    """Return the slice as if the patient had moved during the rotation: doubled edges and a bent outline."""
    rows, columns = hu.shape
    turn = cv2.getRotationMatrix2D((columns / 2, rows / 2), float(rng.choice((-1, 1)) * rng.uniform(1.5, 4)), 1.0)
    turn[:, 2] += rng.uniform(-3.5, 3.5, 2)
    moved = cv2.warpAffine(hu, turn, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    share = np.float32(rng.uniform(0.3, 0.5))
    mixed = hu * (1 - share) + moved * share
    # Where bone and tissue are mixed the reconstruction also under- and overshoots along the edges.
    return mixed + np.clip(moved - hu, -300, 300) * np.float32(0.03)


def head_holder(x: Field, y: Field, centre_y: float, radius: float) -> tuple[Field, Field]:
    """Return the coverage of foam and shell of the head holder under the head. x, y: the scanner's mm."""
    distance = np.sqrt(x * x * np.float32(0.92) + (y - centre_y) ** 2)
    low = y - centre_y - 0.25 * radius
    shell = np.maximum(1.3 - np.abs(distance - radius), 1.1 - np.abs(distance - radius - 13))
    foam = np.minimum(distance - radius, radius + 13 - distance)
    return ramp(np.minimum(foam, low), 1.5), ramp(np.minimum(shell, low), 1.2)


def paint_holder(hu: Field, holder: tuple[Field, Field]) -> None:
    """Paint the holder, a shell of carbon fibre with foam in it, in place where there is air."""
    air = hu < -900
    for value, cover in zip((-930.0, -60.0), holder, strict=True):
        blend(hu, value, cover * air)


def digitize(
    hu: Field, shape: tuple[int, int], noise_hu: float, rng: np.random.Generator, hu_range: tuple[int, int]
) -> NDArray[np.int16]:
    """Resize a noise-free slice to ``shape``, add the scanner's noise and return integer HU."""
    rows, columns = shape
    larger = rows >= hu.shape[0]
    picture = cv2.resize(hu, (columns, rows), interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)
    # Air carries less noise than the middle of a head, where few photons arrive.
    gain = np.clip(cv2.resize(hu, (32, 32), interpolation=cv2.INTER_AREA) / 900 + 1.25, 0.3, 1.25) * noise_hu
    gain = cv2.resize(gain.astype(np.float32), (columns, rows), interpolation=cv2.INTER_LINEAR)
    picture += noise(rng, shape) * gain
    np.rint(picture, out=picture)
    np.clip(picture, hu_range[0], hu_range[1], out=picture)
    return picture.astype(np.int16)


@functools.cache
def outside_circle(rows: int, columns: int) -> NDArray[np.bool_]:
    """Return the mask of the pixels outside the scan circle, which touches the image's shorter sides."""
    y, x = np.ogrid[:rows, :columns]
    radius = min(rows, columns) / 2
    return np.asarray((y - rows / 2 + 0.5) ** 2 + (x - columns / 2 + 0.5) ** 2 > radius * radius)


def _put(dataset: Dataset, keyword: str, representation: str, value: object) -> None:
    # The competition's identifiers (ID_…) are no DICOM UIDs; written as they are, without pydicom's check.
    element = DataElement(Tag(keyword), representation, value, validation_mode=pydicom_config.IGNORE)
    dataset.add(element)


def _decimal(value: float) -> str:
    return f"{value:.6f}"


def new_header(
    patient_id: str,
    study_id: str,
    series_id: str,
    form: PixelForm,
    shape: tuple[int, int],
    spacing_mm: float,
    tilt_radians: float,
    two_windows: bool,
) -> FileDataset:
    """Return the header that a series' files share, with the competition's fields (InstanceNumber is not one)."""
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    meta = dataset.file_meta
    meta.FileMetaInformationGroupLength = 0  # pydicom fills it in
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.Modality = "CT"
    _put(dataset, "PatientID", "LO", patient_id)
    _put(dataset, "StudyInstanceUID", "UI", study_id)
    _put(dataset, "SeriesInstanceUID", "UI", series_id)
    dataset.StudyID = ""
    cos, sin = np.cos(tilt_radians), np.sin(tilt_radians)
    orientation = [_decimal(v) for v in (1, 0, 0, 0, cos, sin)]
    _put(dataset, "ImageOrientationPatient", "DS", orientation)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = shape
    _put(dataset, "PixelSpacing", "DS", [_decimal(spacing_mm)] * 2)
    dataset.BitsAllocated = 16
    dataset.BitsStored = form.bits_stored
    dataset.HighBit = form.bits_stored - 1
    dataset.PixelRepresentation = form.signed
    _put(dataset, "WindowCenter", "DS", ["00036", "00080"] if two_windows else "40")
    _put(dataset, "WindowWidth", "DS", ["00080", "00200"] if two_windows else "100")
    _put(dataset, "RescaleIntercept", "DS", str(form.intercept))
    _put(dataset, "RescaleSlope", "DS", "1")
    return dataset


def write_slice(
    path: Path,
    header: FileDataset,
    image_id: str,
    number: int,
    position_mm: tuple[float, float, float],
    raw: NDArray[np.int16] | NDArray[np.uint16],
    cut: bool = False,
) -> None:
    """Write one file. Fill ``header`` with the slice's own fields. With ``cut``, leave out most of the pixels."""
    header.file_meta.MediaStorageSOPInstanceUID = f"{IMPLEMENTATION_UID}.{number}"
    _put(header, "SOPInstanceUID", "UI", image_id)
    _put(header, "ImagePositionPatient", "DS", [_decimal(v) for v in position_mm])
    pixels = np.ascontiguousarray(raw, dtype=raw.dtype.newbyteorder("<")).tobytes()
    header.add(DataElement(Tag("PixelData"), "OW", pixels))
    buffer = io.BytesIO()
    # Not enforce_file_format: it would put the competition's identifier, which is no UID, into the file's meta part.
    header.save_as(buffer, enforce_file_format=False)
    content = buffer.getbuffer()
    if cut:  # as ID_6431af929: 153,710 of 524,288 declared bytes
        content = content[: len(content) - len(pixels) + len(pixels) * 153_710 // 524_288]
    path.write_bytes(content)
