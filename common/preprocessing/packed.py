"""Unpack gzip files, recognise DICOM files by their mark, and refuse floods: small files that unpack to huge ones."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress

from common.dicom.errors import DicomError

DICOM_MARK = slice(128, 132)  # where a DICOM file has the letters DICM
# No scan and no table unpacks to more than this many bytes and this many times its size. Such a file is a flood.
FLOOD_BYTES, FLOOD_RATIO = 2**25, 100
BLOCK_BYTES = 2**16  # unpacked at once
GZIP_MARK = b"\x1f\x8b"


def no_dicom() -> DicomError:
    """Return the error for a file without DICOM's mark."""
    return DicomError("not_dicom", "not a DICOM file: the mark DICM is missing")


def is_flood(unpacked: int, packed: int) -> bool:
    """Whether a file of ``packed`` bytes that unpacks to ``unpacked`` bytes was made to fill memory or disk."""
    return unpacked > FLOOD_BYTES and unpacked > FLOOD_RATIO * packed


def gunzip(packed: bytes, limit: int) -> bytes:
    """Return the DICOM file in a gzip file. Raise DicomError for any other content, or more than ``limit`` bytes.

    A file without DICOM's mark is refused after its first bytes, before the rest is unpacked.
    """
    content = io.BytesIO()
    for block in inflated(packed):
        content.write(block)
        size = content.tell()
        if size >= DICOM_MARK.stop > size - len(block) and content.getbuffer()[DICOM_MARK] != b"DICM":
            raise no_dicom()
        if size > limit:
            raise DicomError("too_large", f"unpacks to more than {limit} bytes")
        if is_flood(size, len(packed)):
            raise DicomError("too_large", f"{len(packed)} bytes that unpack to {size} and more: made to fill memory")
    if content.tell() < DICOM_MARK.stop:
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


def has_dicom_mark(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is a DICOM file, perhaps packed by gzip."""
    return start[DICOM_MARK] == b"DICM" or within_gzip(start)[DICOM_MARK] == b"DICM"


def within_gzip(start: bytes) -> bytes:
    """Return the first bytes of the content of a gzip file that begins with ``start``, b"" for any other file."""
    content = b""
    with suppress(DicomError):
        for block in inflated(start, whole=False):
            content += block
            if len(content) >= tarfile.BLOCKSIZE:
                break
    return content
