"""Read a DICOM file: its header, then the stored values of each frame."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from common.dicom.decoding import SYNTAXES, Stored, Syntax, compressed_frames, native_frames, syntax_of
from common.dicom.elements import MAX_FILE_BYTES, BoundedStream
from common.dicom.errors import DicomError
from common.dicom.header import check_is_ct_image, read_header
from common.dicom.plain import EXPLICIT_LITTLE_ENDIAN, read_plain
from common.dicom.repeats import (
    ELEMENT_BYTES,
    FUNCTIONAL_GROUPS,
    UNDEFINED_LENGTH,
    Repeats,
    check_items,
    check_rest,
    fragments_end,
)
from common.dicom.slices import CtHeader

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

MAX_HEADER_BYTES = 2**25
MAX_INFLATED_BYTES = 2**27
INFLATED_AT_ONCE = 2**20
PREAMBLE_BYTES = 132
MARK = b"DICM"  # the last bytes of the preamble
META_GROUP = 2
PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)  # PixelData, FloatPixelData, DoubleFloatPixelData


@contextmanager
def quiet_pydicom() -> Iterator[list[str]]:
    """Keep pydicom's warnings and log lines off the console. Yield a list that collects the kind of each.

    Only the kind, for example ``UserWarning``, is kept, because the messages quote header values. pydicom doesn't
    check values against their VR meanwhile: the competition's identifiers are no valid UIDs, and this package checks
    each value that it uses.
    """
    from pydicom import config

    kinds: list[str] = []

    def count(record: logging.LogRecord) -> bool:
        kinds.append(record.levelname)
        return False

    def count_warning(_: object, category: type[Warning], *__: object) -> None:
        kinds.append(category.__name__)

    logger = logging.getLogger("pydicom")
    mode = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    logger.addFilter(count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = count_warning
            yield kinds
    finally:
        logger.removeFilter(count)
        config.settings.reading_validation_mode = mode


@dataclass(frozen=True)
class CtFile:
    """A CT file whose header has been read, but not its pixels.

    ``data[start:]`` begins with the raw value of PixelData; more may follow it. ``declared`` is the value's length in
    bytes as the file gives it, None for compressed pixels.
    """

    header: CtHeader
    syntax_uid: str
    data: bytes | bytearray
    start: int
    declared: int | None

    @property
    def header_bytes(self) -> memoryview:
        """All bytes before the pixels, after inflating a deflated file."""
        return memoryview(self.data)[: self.start]

    def frames(self) -> Iterator[Stored | DicomError]:
        """Yield the stored values of one frame after the other, or a DicomError object for a frame without any.

        Raises DicomError if no frame can be read.
        """
        form = self.header.form
        if self.declared is None:
            stream = BytesIO(self.data)
            stream.seek(self.start)
            return compressed_frames(stream, self.syntax_uid, form)
        pixels = memoryview(self.data)[self.start : self.start + self.declared]
        return native_frames(pixels, self.declared, form, syntax_of(self.syntax_uid).little_endian)


def read_dicom(content: bytes) -> CtFile:
    """Read the header of a CT file. Raise DicomError for any other file, before a pixel is decoded.

    Call this within :func:`quiet_pydicom`. It needs at most about 150 MiB besides ``content``, for any file.
    """
    plain = read_plain(content) if len(content) <= MAX_FILE_BYTES else None
    if plain is not None:
        check_rest(content, plain.start + plain.declared, SYNTAXES[EXPLICIT_LITTLE_ENDIAN])
        return CtFile(plain.header, EXPLICIT_LITTLE_ENDIAN, content, plain.start, plain.declared)
    return read_any(content)


def read_any(content: bytes) -> CtFile:
    """Do what :func:`read_dicom` does, always with pydicom. A plain file gives the same result either way."""
    if len(content) > MAX_FILE_BYTES:
        raise DicomError("too_large", f"{len(content)} bytes; at most {MAX_FILE_BYTES} are read")
    if content[PREAMBLE_BYTES - len(MARK) : PREAMBLE_BYTES] != MARK:
        raise DicomError("not_dicom", "not a DICOM file: the mark DICM is missing")
    try:
        # Read the file meta information first: a deflated file of one megabyte can inflate to gigabytes.
        meta, start = _read_meta(content)
        uid = str(meta.get("TransferSyntaxUID", ""))
        syntax = syntax_of(uid)
        data: bytes | bytearray = content
        if syntax.deflated:
            data, start = _inflate(memoryview(content)[start:], MAX_INFLATED_BYTES), 0
        dataset, pixels = _read_dataset(data, start, syntax)
        dataset.file_meta = meta
    except (DicomError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything in the parser: ValueError, RecursionError, ...
        raise _dicom_error_behind(error) or DicomError(
            "unreadable", f"not readable as DICOM ({type(error).__name__})"
        ) from None
    if pixels is None:
        check_is_ct_image(dataset)
        raise DicomError("truncated", "there is no PixelData: a cut file")
    header = read_header(dataset)
    tag, length, offset = pixels
    if tag != PIXEL_TAGS[0]:
        raise DicomError("pixel_format", "pixels are stored as floating-point numbers")
    if (length == UNDEFINED_LENGTH) != bool(syntax.plugin):
        raise DicomError("pixel_format", "PixelData is stored otherwise than the transfer syntax says")
    check_rest(data, fragments_end(data, offset) if syntax.plugin else offset + length, syntax)
    return CtFile(header, uid, data, offset, None if syntax.plugin else length)


def _dicom_error_behind(error: BaseException) -> DicomError | None:
    """Return the DicomError of the bounded stream that pydicom replaced by ``error``, None if there was none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DicomError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _read_meta(content: bytes) -> tuple[FileMetaDataset, int]:
    """Return the file meta information and the offset of the data set."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    stream = BoundedStream(content[:MAX_HEADER_BYTES])
    stream.seek(PREAMBLE_BYTES)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != META_GROUP)
    return FileMetaDataset(meta), stream.tell()


def _inflate(body: memoryview, limit: int) -> bytearray:
    """Inflate a deflated data set. Raise DicomError if it is damaged or has more than ``limit`` bytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = bytearray()
    rest: bytes | memoryview = body
    try:
        while not inflater.eof and (rest or not whole):
            block = inflater.decompress(rest, INFLATED_AT_ONCE)
            if not block and not inflater.unconsumed_tail:
                break
            whole += block
            rest = inflater.unconsumed_tail
            if len(whole) > limit:
                raise DicomError("too_large", f"inflates to more than {limit} bytes")
    except zlib.error:
        raise DicomError("decoding", "the deflated data set is damaged") from None
    return whole


def _read_dataset(data: bytes | bytearray, start: int, syntax: Syntax) -> tuple[Dataset, tuple[int, int, int] | None]:
    """Read up to the pixels. Return the data set, and the tag, length and offset of the pixels, None without pixels."""
    from pydicom.filereader import read_dataset

    stream = BoundedStream(data[start : start + MAX_HEADER_BYTES])
    found: list[tuple[int, int, int]] = []
    repeats = Repeats()

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        # pydicom asks about the first element twice, first before it has read its length. Count it once.
        if stream.tell() >= ELEMENT_BYTES:
            repeats.add(tag)
            if tag >> 16 == FUNCTIONAL_GROUPS:
                check_items(data, start + stream.tell(), length, syntax)
        if tag in PIXEL_TAGS:
            found.append((int(tag), length, start + stream.tell()))
        return tag in PIXEL_TAGS

    dataset = read_dataset(stream, syntax.implicit_vr, syntax.little_endian, stop_when=at_pixels)
    if not found and len(data) - start > MAX_HEADER_BYTES:
        raise DicomError("too_large", f"the header is longer than {MAX_HEADER_BYTES} bytes")
    return dataset, found[-1] if found else None
