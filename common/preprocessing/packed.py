"""Unpack gzip files, recognise DICOM and NIfTI files by their marks, refuse small files that unpack to huge ones."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress

from common.dicom.errors import DicomError

DICOM_MARK = slice(128, 132)  # where a DICOM file has the letters DICM
NIFTI_MARKS = {
    348: slice(344, 348),
    540: slice(4, 8),
}  # sizeof_hdr of NIfTI-1 and NIfTI-2, and where their letters stand
NIFTI_LETTERS = (b"n+1\0", b"n+2\0")
MARK_END = 348  # so many first bytes tell what a file is
# No scan and no table unpacks to more than this many bytes and this many times its size. Such a file is a flood.
FLOOD_BYTES, FLOOD_RATIO = 2**25, 100
BLOCK_BYTES = 2**16  # unpacked at once
GZIP_MARK = b"\x1f\x8b"


def is_nifti(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is a NIfTI volume in one file."""
    for order in ("little", "big"):
        place = NIFTI_MARKS.get(int.from_bytes(start[:4], order))
        if place is not None and start[place] in NIFTI_LETTERS:
            return True
    return False


def no_dicom() -> DicomError:
    """Return the error for a file with no mark of a scan."""
    return DicomError("not_dicom", "not a DICOM file: the mark DICM is missing")


def is_scan(start: bytes | memoryview) -> bool:
    """Whether a file that begins with ``start``, at least :data:`MARK_END` bytes if it has them, may hold CT slices."""
    return start[DICOM_MARK] == b"DICM" or is_nifti(bytes(start[:MARK_END]))


def is_flood(unpacked: int, packed: int) -> bool:
    """Whether a file of ``packed`` bytes that unpacks to ``unpacked`` bytes was made to fill memory or disk."""
    return unpacked > FLOOD_BYTES and unpacked > FLOOD_RATIO * packed


def gunzip(packed: bytes, limit: int) -> bytes:
    """Return the DICOM or NIfTI file in a gzip file. Raise DicomError for another, or more than ``limit`` bytes.

    Any other file is refused after its first bytes, before the rest is unpacked.
    """
    content = io.BytesIO()
    for block in inflated(packed):
        content.write(block)
        size = content.tell()
        if size >= MARK_END > size - len(block) and not is_scan(content.getbuffer()):
            raise no_dicom()
        if size > limit:
            raise DicomError("too_large", f"unpacks to more than {limit} bytes")
        if is_flood(size, len(packed)):
            raise DicomError("too_large", f"{len(packed)} bytes that unpack to {size} and more: made to fill memory")
    if content.tell() < MARK_END and not is_scan(content.getbuffer()):
        raise no_dicom()
    return content.getvalue()


def inflated(packed: bytes, *, whole: bool = True) -> Iterator[bytes]:
    """Yield the content of a gzip file in blocks. Raise DicomError if it is damaged or, with ``whole``, truncated."""
    rest = packed
    while rest.startswith(GZIP_MARK):  # a file may hold several gzip members
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not inflater.eof:
            try:
                block = inflater.decompress(rest, BLOCK_BYTES)
            except zlib.error:
                raise DicomError("unreadable", "the gzip file is damaged") from None
            rest = inflater.unconsumed_tail
            if block:
                yield block
            elif not rest and not inflater.eof:
                if whole:
                    raise DicomError("unreadable", "the gzip file is cut")
                return
        rest = inflater.unused_data


def has_mark(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is a DICOM or NIfTI file, perhaps packed by gzip."""
    return is_scan(start) or is_scan(within_gzip(start))


def within_gzip(start: bytes) -> bytes:
    """Return the first bytes of the content of a gzip file that begins with ``start``, b"" for any other file."""
    content = b""
    with suppress(DicomError):
        for block in inflated(start, whole=False):
            content += block
            if len(content) >= tarfile.BLOCKSIZE:
                break
    return content
