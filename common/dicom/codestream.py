"""Read the size and precision of a compressed image before a decoder sees it.

A decoder allocates what the codestream asks for: three kilobytes can ask for gigabytes. So the size is compared with
the header's before decoding.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

from common.dicom.errors import DicomError

JPEG_START = b"\xff\xd8"
JPEG_LS_EXTENSION = 0xF8
JPEG_SCAN = 0xDA
JPEG_LS_FRAME = 0xF7
JPEG_LOSSLESS_FRAMES = {0xC3, 0xC7, 0xCB, 0xCF}
JPEG_FRAMES = {*range(0xC0, 0xD0), JPEG_LS_FRAME} - {0xC4, 0xC8, 0xCC}
JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
JPEG_LS_OVERSIZE = 4  # type of the extension that replaces the size
J2K_START = b"\xff\x4f\xff\x51"
J2K_CODING = 0xFF52
J2K_TILE = 0xFF90
J2K_IRREVERSIBLE = 0
MAX_TILES = 4096
RLE_HEADER_BYTES = 64
RLE_NOTHING = 128  # control byte: a smaller n precedes n + 1 literal bytes, a larger one precedes a byte to repeat
RLE_LONGEST_RUN = 128
RLE_SLACK = 2


class Codestream(NamedTuple):
    """Size of the decoded image, precision in bits, and whether the compression was lossy."""

    rows: int
    columns: int
    components: int
    precision: int
    lossy: bool


def read_jpeg(data: bytes) -> Codestream:
    """Read a JPEG or JPEG-LS codestream up to its first scan. Raise DicomError (decoding) if it is damaged."""
    frame = loss = None
    position = len(JPEG_START)
    try:
        if data[:position] != JPEG_START:
            raise DicomError("decoding", "no JPEG codestream")
        while True:
            start, marker = data[position], data[position + 1]
            if start != 0xFF:
                raise DicomError("decoding", "damaged JPEG codestream")
            position += 1 if marker == 0xFF else 2  # any number of 0xFF may stand before a marker
            if marker == 0xFF or marker in JPEG_ALONE:
                continue
            (length,) = struct.unpack_from(">H", data, position)
            if marker in JPEG_FRAMES:
                if frame is not None:
                    raise DicomError("decoding", "JPEG codestream with several frames")
                precision, rows, columns, components = struct.unpack_from(">BHHB", data, position + 2)
                loss = None if marker == JPEG_LS_FRAME else marker not in JPEG_LOSSLESS_FRAMES
                frame = Codestream(rows, columns, components, precision, bool(loss))
            elif marker == JPEG_LS_EXTENSION and data[position + 2] == JPEG_LS_OVERSIZE:
                raise DicomError("decoding", "JPEG-LS codestream that changes its size")
            elif marker == JPEG_SCAN:
                break
            position += length
        if frame is None:
            raise DicomError("decoding", "JPEG codestream without a frame")
        # After the components of the scan: how far a value may be off (JPEG-LS), then, in lossless forms, how many of
        # the lowest bits were dropped (point transform).
        parameters = position + 3 + 2 * data[position + 2]
        near, cut = data[parameters], data[parameters + 2] & 0xF
    except (IndexError, struct.error):
        raise DicomError("decoding", "cut JPEG codestream") from None
    return frame._replace(lossy=(loss if loss is not None else near > 0) or cut > 0)


def read_j2k(data: bytes) -> Codestream:
    """Read the main header of a JPEG 2000 or HTJ2K codestream. Raise DicomError (decoding) if it is damaged."""
    try:
        if data[: len(J2K_START)] != J2K_START:
            raise DicomError("decoding", "no JPEG 2000 codestream")
        right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6L", data, 8)
        components, precision = struct.unpack_from(">HB", data, 40)
        if not (tile_width and tile_height) or -(-right // tile_width) * -(-bottom // tile_height) > MAX_TILES:
            raise DicomError("decoding", "JPEG 2000 codestream of too many tiles")
        lossy = None
        position = 4 + struct.unpack_from(">H", data, 4)[0]
        while lossy is None:
            marker, length = struct.unpack_from(">HH", data, position)
            if marker == J2K_CODING:
                lossy = data[position + 13] == J2K_IRREVERSIBLE
            elif marker == J2K_TILE or marker < 0xFF00:
                raise DicomError("decoding", "damaged JPEG 2000 codestream")
            position += 2 + length
    except (IndexError, struct.error):
        raise DicomError("decoding", "cut JPEG 2000 codestream") from None
    return Codestream(bottom - top, right - left, components, (precision & 0x7F) + 1, lossy)


def check_rle(data: bytes, segments: int, segment_bytes: int) -> None:
    """Raise DicomError unless RLE data expands to ``segments`` segments of ``segment_bytes`` bytes each.

    The reason is ``truncated`` for a short segment, else ``decoding``. A segment may be a little longer, since some
    writers pad it. Decoders would expand any amount of data, to 64 times its size.
    """
    if len(data) < RLE_HEADER_BYTES or struct.unpack_from("<L", data)[0] != segments:
        raise DicomError("decoding", f"RLE data without {segments} segments")
    starts = [*struct.unpack_from(f"<{segments}L", data, 4), len(data)]
    if starts[0] < RLE_HEADER_BYTES or sorted(starts) != starts:
        raise DicomError("decoding", "RLE segments that overlap")
    for start, end in pairwise(starts):
        expanded, position = 0, start
        while position < end and expanded <= RLE_SLACK * segment_bytes:
            control = data[position]
            if control < RLE_NOTHING:
                expanded += min(control + 1, end - position - 1)
                position += control + 2
            elif control > RLE_NOTHING:
                expanded += RLE_LONGEST_RUN + RLE_NOTHING + 1 - control
                position += 2
            else:
                position += 1
        if expanded < segment_bytes:
            raise DicomError("truncated", f"an RLE segment holds {expanded} of {segment_bytes} bytes")
        if position < end:
            raise DicomError("decoding", "an RLE segment is far longer than the image")
