"""NIfTI volumes of CT, as research datasets have them, in the terms of a CT file: a header and frames.

A volume has the axes and the affine of NIfTI (RAS+: right, anterior, superior are positive). A CT slice has DICOM's
(LPS+). The slices are the planes across the axis that is nearest to the patient's length. Each lies as in a DICOM file:
columns run to the patient's left, rows to the back, and the first slice is the lowest. No voxel is interpolated, so
an oblique or sheared volume (a tilted gantry) keeps its places along the slices' normal.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.dicom.decoding import Stored
from common.dicom.errors import DicomError
from common.dicom.geometry import SliceGeometry
from common.dicom.pictures import AIR_HU
from common.dicom.slices import CtHeader, Identity, PixelForm, SliceHeader

HEADER_BYTES = 348
LIGHT_HU, AIR_SHARE = -500, 0.01  # a CT of a head has far more air than that, and masks and windowed copies have none
SAMPLED = 4  # of the voxels along each axis of a slice, one in so many is asked whether it is air
INT16 = np.iinfo(np.int16)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SILENT = logging.CRITICAL + 1


@dataclass(frozen=True)
class NiftiFile:
    """A volume whose header has been read; see :class:`common.dicom.reading.CtFile`.

    ``stored`` (slices, rows, columns): the values as they lie in the file, without ``slope`` and ``intercept``.
    """

    header: CtHeader
    header_bytes: memoryview
    stored: np.ndarray
    slope: float
    intercept: float

    def frames(self) -> Iterator[Stored | DicomError]:
        """Yield each slice in HU, int16 (rows, columns), rounded to the nearest integer (half to even)."""
        for stored in self.stored:
            yield Stored(_hounsfield(stored, self.slope, self.intercept))


def read_nifti(content: bytes, name: str) -> NiftiFile:
    """Read a volume. ``name`` is its path within the source, which stands for study and series: it names neither.

    Raises DicomError if it is damaged, is no volume of CT in HU, or nibabel is not installed.
    """
    if importlib.util.find_spec("nibabel") is None:
        raise DicomError("unreadable", "NIfTI files need a package that is not installed: pip install nibabel")
    volume = _Volume(content)
    form = PixelForm(*volume.array.shape[1:], len(volume.array), 16, 16, signed=True, padding=None)
    form.check()
    if min(form.rows, form.columns) == 1:
        raise DicomError("localizer", "a single plane that is not axial, as of a scout")
    sample = volume.array[:, ::SAMPLED, ::SAMPLED].astype(np.float64) * volume.slope + volume.intercept
    if np.count_nonzero(sample < LIGHT_HU) < AIR_SHARE * sample.size:  # also where all values are no numbers
        raise DicomError("no_hounsfield", "hardly a voxel is air: a mask, or values that are no Hounsfield units")
    headers = tuple(SliceHeader(1.0, 0.0, geometry) for geometry in volume.geometries())
    header = CtHeader(Identity("", name, name, ""), form, headers)
    return NiftiFile(header, memoryview(content)[:HEADER_BYTES], volume.array, volume.slope, volume.intercept)


def slices_of_third_axis(path: Path) -> tuple[int, bool]:
    """Return how many slices lie along a file's own third axis, and whether its first one is the highest.

    There are none if slices lie along another axis or the file can't be read. Only the header is read.
    """
    import nibabel
    from nibabel.orientations import io_orientation

    nibabel.imageglobals.logger.setLevel(SILENT)
    try:
        image = nibabel.load(path)
        turn = io_orientation(RAS_TO_LPS @ np.asarray(image.affine, np.float64))
        return (int(image.shape[2]), bool(turn[2, 1] < 0)) if turn[2, 0] == 2 else (0, False)
    except Exception:  # a damaged file can raise anything in the parser
        return 0, False


class _Volume:
    """A volume's stored values with DICOM's axes: (slices, rows, columns), and the affine of (column, row, slice)."""

    def __init__(self, content: bytes) -> None:
        import nibabel  # optional, and slow to import
        from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

        nibabel.imageglobals.logger.setLevel(SILENT)  # what it has to say is an error here, or nothing
        kind = nibabel.Nifti2Image if content[4:7] == b"n+2" else nibabel.Nifti1Image
        try:
            image = kind.from_bytes(content)
            stored = image.dataobj.get_unscaled()
            affine = RAS_TO_LPS @ np.asarray(image.affine, np.float64)
            stored = stored.reshape((*stored.shape, 1)[: max(stored.ndim, 3)])
            turn = io_orientation(affine)  # a flip and an order of axes, which move no value off its voxel
            self.affine = affine @ inv_ornt_aff(turn, stored.shape[:3])
            self.slope, self.intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can raise anything in the parser
            raise DicomError("unreadable", f"not readable as NIfTI ({type(error).__name__})") from None
        if stored.dtype.kind not in "iuf":
            raise DicomError("colour", "not one grey value for each voxel")
        if any(side != 1 for side in stored.shape[3:]):
            raise DicomError("map", "several volumes in one file, as of a perfusion series")
        if not np.isfinite(self.affine).all():
            raise DicomError("unreadable", "its affine places voxels nowhere")
        self.array = apply_orientation(stored.reshape(stored.shape[:3]), turn).transpose(2, 1, 0)

    def geometries(self) -> Iterator[SliceGeometry]:
        """Yield each slice's place; of a file without sform and qform, nibabel's: order and spacing are right."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        directions = (self.affine[:3, :2] / spacing[:2]).T.ravel()
        for number in range(len(self.array)):
            position = self.affine[:3, 2] * number + self.affine[:3, 3]
            yield SliceGeometry(
                tuple(position.tolist()), tuple(directions.tolist()), float(spacing[1]), float(spacing[0]), float("nan")
            )


def _hounsfield(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Return stored values in HU, int16; what is no number is air, and what lies beyond int16 is its end."""
    values = np.nan_to_num(stored.astype(np.float64) * slope + intercept, nan=AIR_HU)
    return np.clip(np.rint(values), INT16.min, INT16.max).astype(np.int16)
