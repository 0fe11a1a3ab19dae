"""From a file's content to a pydicom data set that is known to be a CT image."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

from common.dicom.elements import integer_of, text_of, value_of
from common.dicom.errors import DicomError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_FILE_BYTES = 2**27
PREAMBLE_BYTES = 132
MARK = b"DICM"  # the preamble's end
META_GROUP = 2
NATIVE_SYNTAXES = {  # transfer syntax UID -> byte order of the pixels
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.2": ">",
}


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


def read_dicom(content: bytes) -> Dataset:
    """Read a file's content: one uncompressed, single-frame CT image. Call it within :func:`quiet_pydicom`.

    Raises :class:`DicomError` for everything else, before any pixel is decoded.
    """
    from pydicom import dcmread
    from pydicom.filereader import read_dataset

    if len(content) > MAX_FILE_BYTES:
        raise DicomError("too_large", f"{len(content)} bytes; at most {MAX_FILE_BYTES} are read")
    if content[PREAMBLE_BYTES - len(MARK) : PREAMBLE_BYTES] != MARK:
        raise DicomError("not_dicom", "not a DICOM file: the mark DICM is missing")
    try:
        # The meta part first: a deflated file of a megabyte can inflate to gigabytes while it is read.
        stream = BytesIO(content)
        stream.seek(PREAMBLE_BYTES)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != META_GROUP)
        syntax = str(meta.get("TransferSyntaxUID", ""))
        if syntax not in NATIVE_SYNTAXES:
            raise DicomError("transfer_syntax", f"{_syntax_name(syntax)} is not an uncompressed transfer syntax")
        dataset = dcmread(BytesIO(content))
    except DicomError:
        raise
    except Exception as error:  # whatever a damaged file makes of the parser: ValueError, TypeError, RecursionError ...
        raise DicomError("unreadable", f"not readable as DICOM ({type(error).__name__})") from None
    _check_is_ct_image(dataset)
    return dataset


def _syntax_name(syntax: str) -> str:
    from pydicom.uid import UID

    uid = UID(syntax)
    return uid.name if uid.is_transfer_syntax else "an unknown transfer syntax"


def _check_is_ct_image(dataset: Dataset) -> None:
    if text_of(dataset, "Modality") != "CT":
        raise DicomError("not_ct", "Modality is missing or not CT")
    image_type = value_of(dataset, "ImageType")
    if image_type is not None and "LOCALIZER" in str(image_type).upper():
        raise DicomError("localizer", "ImageType says that it is a localizer (scout) image")
    if "PixelData" not in dataset:
        if "Rows" in dataset:
            raise DicomError("truncated", "there is no PixelData: a cut file")
        raise DicomError("no_image", "holds no image (neither Rows nor PixelData)")
    if integer_of(dataset, "SamplesPerPixel") != 1:
        raise DicomError("colour", "SamplesPerPixel is not 1")
    if not text_of(dataset, "PhotometricInterpretation").startswith("MONOCHROME"):
        raise DicomError("colour", "PhotometricInterpretation is not MONOCHROME1 or MONOCHROME2")
    if value_of(dataset, "NumberOfFrames") is not None and integer_of(dataset, "NumberOfFrames") != 1:
        raise DicomError("multi_frame", "NumberOfFrames is not 1")
