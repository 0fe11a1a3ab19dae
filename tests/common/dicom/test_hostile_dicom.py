"""Files made to fill the memory: each is refused, and all of them together take less than 300 MiB."""

from __future__ import annotations

import functools
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLossless, JPEGLSLossless, RLELossless

from common.dicom.errors import REASONS, DicomError
from common.dicom.reading import CtFile, quiet_pydicom, read_dicom
from tests import PROJECT
from tests.common.dicom.test_dicom_syntaxes import enhanced
from tests.dicom_encoders import content_of, ct_in, with_codestream
from tests.dicom_files import head, new_ct

LIMIT_BYTES = 300 * 2**20
UNDEFINED = b"\xff\xff\xff\xff"
ITEM = b"\xfe\xff\x00\xe0"
SEQUENCE = b"\x08\x00\x40\x11SQ\x00\x00"  # (0008,1140)
IMAGE_TYPE = b"\x08\x00\x60\x00CS"  # where Modality begins: before it an element is put in


def sized(rows: int, columns: int, **elements: object) -> object:
    dataset = new_ct(head(0))
    dataset.Rows, dataset.Columns = rows, columns
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def with_element(element: bytes) -> bytes:
    content = content_of(new_ct(head(0)))
    start = content.index(IMAGE_TYPE)
    return content[:start] + element + content[start:]


def deflated() -> bytes:
    content = ct_in(DeflatedExplicitVRLittleEndian, head(0))
    start = content.index(b"1.2.840.10008.1.2.1.99") + 22
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = deflater.compress(bytes(2**24)) + deflater.flush(zlib.Z_FULL_FLUSH)  # as it stands anywhere in a stream
    return content[:start] + 64 * block


def rle(segment: bytes, rows: int, columns: int) -> bytes:
    header = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13)
    return with_codestream(sized(rows, columns), RLELossless, header + 2 * segment)


def frame_header(marker: int, rows: int, columns: int) -> bytes:
    return b"\xff\xd8\xff" + struct.pack(">BHBHHBBBB", marker, 11, 16, rows, columns, 1, 1, 0x11, 0)


def jpeg(marker: int, rows: int, columns: int, declared: tuple[int, int], syntax: str) -> bytes:
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + bytes(3000)
    return with_codestream(sized(*declared), syntax, frame_header(marker, rows, columns) + scan + b"\xff\xd9")


def jpeg_2000(rows: int, columns: int, tile: int) -> bytes:
    size = struct.pack(">HHHLLLLLLLLHBBB", 0xFF51, 41, 0, columns, rows, 0, 0, tile, tile, 0, 0, 1, 15, 1, 1)
    coding = b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x05\x04\x04\x00\x01"
    return with_codestream(sized(4096, 4096), JPEG2000Lossless, b"\xff\x4f" + size + coding + bytes(200))


def grouped(items: int) -> bytes:
    """An enhanced CT whose functional groups are a sequence of defined length with empty items."""
    dataset = enhanced()
    content = content_of(dataset)
    start = content.index(b"\x00\x52\x30\x92SQ")
    end = content.index(b"\xe0\x7f\x10\x00")
    return content[: start + 8] + struct.pack("<L", 8 * items) + (ITEM + bytes(4)) * items + content[end:]


BOMBS = {
    "a gigabyte deflated": (deflated, "too_large"),
    "RLE of 568 bytes for 4096 x 4096": (lambda: rle(b"\x81\x00" * 126, 4096, 4096), "truncated"),
    "RLE of 568 bytes for 65535 x 65535": (lambda: rle(b"\x81\x00" * 126, 65535, 65535), "pixel_format"),
    "RLE that expands far beyond its image": (lambda: rle(b"\x81\x00" * 40_000, 256, 256), "decoding"),
    "JPEG-LS that says 65535 x 65535": (lambda: jpeg(0xF7, 65535, 65535, (64, 64), JPEGLSLossless), "pixel_format"),
    "JPEG-LS of 3 KB for 4096 x 4096": (lambda: jpeg(0xF7, 4096, 4096, (4096, 4096), JPEGLSLossless), "decoding"),
    "lossless JPEG that says 65535 x 65535": (
        lambda: jpeg(0xC3, 65535, 65535, (64, 64), JPEGLossless),
        "pixel_format",
    ),
    "JPEG 2000 that says 2**31 x 2**31": (lambda: jpeg_2000(2**31, 2**31, 2**31), "pixel_format"),
    "JPEG 2000 of 16 million tiles": (lambda: jpeg_2000(4096, 4096, 1), "decoding"),
    "400 nested sequences": (
        lambda: with_element((SEQUENCE + UNDEFINED + ITEM + UNDEFINED) * 400),
        "unreadable",
    ),
    "300,000 empty items": (
        lambda: with_element(SEQUENCE + UNDEFINED + (ITEM + bytes(4)) * 300_000),
        "too_large",
    ),
    "300,000 items that are none": (
        lambda: with_element(SEQUENCE + UNDEFINED + b"\x08\x00\x01\x00\x00\x00\x00\x00" * 300_000),
        "too_large",
    ),
    "200,000 elements": (
        lambda: with_element(b"".join(struct.pack("<HH2sH", 9, n % 65536, b"LO", 0) for n in range(200_000))),
        "too_large",
    ),
    "300,000 functional groups": (lambda: grouped(300_000), "too_large"),
    "65535 frames of 4096 x 4096": (
        lambda: content_of(sized(4096, 4096, NumberOfFrames="65535")),
        "too_large",
    ),
    "a 65535 x 65535 header": (lambda: content_of(sized(65535, 65535)), "pixel_format"),
    "60 MiB of codestream for 24 x 24": (
        lambda: with_codestream(new_ct(head(0)), RLELossless, bytes(60 * 2**20)),
        "too_large",
    ),
}


@functools.cache
def bomb(name: str) -> bytes:
    return BOMBS[name][0]()


def reason_of(content: bytes) -> str:
    """Why a file gives no image."""
    try:
        with quiet_pydicom():
            file = read_dicom(content)
            found = [*file.header.frames, *file.frames()]
    except DicomError as error:
        return error.reason
    return next((part.reason for part in found if isinstance(part, DicomError)), "an image")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_name(name: str) -> None:
    _, reason = BOMBS[name]
    assert reason in REASONS
    assert reason_of(bomb(name)) == reason


def test_all_bombs_together_take_less_than_300_mib() -> None:
    """The bombs lie on the disk; the process that reads them knows nothing else. The peak is the kernel's count."""
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "import resource, pathlib, pydicom.pixels\n"
        "from common.dicom.errors import DicomError\n"
        "from common.dicom.reading import quiet_pydicom, read_dicom\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = peak()\n"
        "for name in sys.argv[1:]:\n"
        "    before = peak()\n"
        "    try:\n"
        "        with quiet_pydicom():\n"
        "            file = read_dicom(pathlib.Path(name).read_bytes())\n"
        "            list(file.frames())\n"
        "    except DicomError: pass\n"
        "    print(peak() - start, pathlib.Path(name).name)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for name in BOMBS:
            path = Path(folder) / name.replace(" ", "_")
            path.write_bytes(bomb(name))
            names.append(str(path))
        run = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    growth = [int(line.split()[0]) for line in run.stdout.splitlines()]
    assert len(growth) == len(BOMBS)
    assert growth[-1] * 1024 < LIMIT_BYTES, run.stdout


def test_an_image_of_the_largest_size_is_read() -> None:
    dataset = sized(4096, 4096)
    dataset.PixelData = np.full(4096 * 4096, 1064, np.uint16).tobytes()
    file = read_dicom(content_of(dataset))
    assert isinstance(file, CtFile)
    (stored,) = file.frames()
    assert (stored.container == 1064).all()
