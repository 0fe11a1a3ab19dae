"""Small CT files for tests, written with plain pydicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pydicom import config
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian


def new_ct(
    stored: np.ndarray, *, bits: int = 16, intercept: float | str = -1024, syntax: str = ExplicitVRLittleEndian
) -> FileDataset:
    """A CT image of 16-bit ``stored`` numbers, with the fields that the competition's files have."""
    dataset = FileDataset(
        "", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128, is_little_endian=syntax != ExplicitVRBigEndian
    )
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = "CT"
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "ID_1", "1.2.4", "1.2.5"
    dataset.ImagePositionPatient = [-120, -110, 5]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.5, 0.25]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", str(intercept)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def write_ct(path: Path, dataset: FileDataset) -> Path:
    """Write a dataset as it is, whatever is wrong with it."""
    mode = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        dataset.save_as(path, enforce_file_format=False)
    finally:
        config.settings.writing_validation_mode = mode
    return path


def head(seed: int, rows: int = 24, columns: int = 24) -> np.ndarray:
    """HU of something round in air, another one for each seed."""
    y, x = np.ogrid[:rows, :columns]
    inside = (y - rows / 2) ** 2 + (x - columns / 2) ** 2 < (min(rows, columns) / 2.5) ** 2
    tissue = np.random.default_rng(seed).integers(0, 80, (rows, columns))
    return np.where(inside, tissue, -1000).astype(np.int16)


def ids_of_files(id_map: Path) -> dict[str, str]:
    """Return the id of each file of a map, of a file with several images of the first."""
    table = pd.read_csv(id_map, dtype=str, keep_default_na=False)
    return dict(zip(table["file"][::-1], table["id"][::-1], strict=True))
