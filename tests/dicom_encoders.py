"""CT files in every transfer syntax, encoded by libraries that the project doesn't decode with, where there are any."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.dicom_files import new_ct, write_ct

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
LOSSLESS = (*NATIVE, *COMPRESSED)
GDCM_NAMES = {JPEGLossless: "JPEGLosslessProcess14", JPEGLosslessSV1: "JPEGLosslessProcess14_1"}


def content_of(dataset: FileDataset) -> bytes:
    """The file of a data set as it is."""
    with tempfile.TemporaryDirectory() as folder:
        return write_ct(Path(folder) / "image.dcm", dataset).read_bytes()


def ct_in(syntax: str, stored: np.ndarray, **options: object) -> bytes:
    """A CT file of one image in any lossless transfer syntax."""
    if syntax in NATIVE:
        return content_of(new_ct(stored, syntax=syntax, **options))
    dataset = new_ct(stored, **options)
    if syntax in GDCM_NAMES:
        return gdcm_encoded(content_of(dataset), GDCM_NAMES[syntax])
    dataset.compress(syntax, generate_instance_uid=False)
    return content_of(dataset)


def gdcm_encoded(content: bytes, name: str) -> bytes:
    """A file's picture encoded again by GDCM."""
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/source.dcm", f"{folder}/target.dcm"
        Path(source).write_bytes(content)
        reader = gdcm.ImageReader()
        reader.SetFileName(source)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(target)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(target).read_bytes()


def jpeg_baseline(picture: np.ndarray, quality: int = 95) -> bytes:
    """A CT file of an 8-bit picture, encoded by Pillow."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    dataset = new_ct(picture.astype(np.uint16))
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    return with_codestream(dataset, JPEGBaseline8Bit, stream.getvalue())


def with_codestream(dataset: FileDataset, syntax: str, *frames: bytes) -> bytes:
    """A file whose pixels are these codestreams."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(list(frames))
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return content_of(dataset)


def reread(content: bytes) -> FileDataset:
    """The file as plain pydicom reads it."""
    return dcmread(io.BytesIO(content))
