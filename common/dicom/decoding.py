"""Decode the stored values of each frame, native or compressed, for the supported transfer syntaxes.

Each syntax names its decoder, so that an image doesn't depend on which decoders are installed. All have permissive
licences: pydicom's own for RLE, GDCM (JPEG, JPEG-LS) and OpenJPEG (JPEG 2000, HTJ2K). pyjpegls gives the same images
as GDCM, but takes seven seconds for some damaged streams that GDCM refuses at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import NamedTuple

import numpy as np

from common.dicom.codestream import Codestream, check_rle, read_j2k, read_jpeg
from common.dicom.errors import DicomError
from common.dicom.slices import PixelForm

LOSSY_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
CODESTREAM_SLACK = 2**16  # a compressed frame may take this many bytes more than twice its pixels'


class Syntax(NamedTuple):
    """How a transfer syntax stores a data set and its pixels. ``plugin`` is pydicom's name of the decoder."""

    implicit_vr: bool = False
    little_endian: bool = True
    deflated: bool = False
    plugin: str = ""
    read_codestream: Callable[[bytes], Codestream] | None = None


SYNTAXES = {
    "1.2.840.10008.1.2": Syntax(implicit_vr=True),
    "1.2.840.10008.1.2.1": Syntax(),
    "1.2.840.10008.1.2.2": Syntax(little_endian=False),
    "1.2.840.10008.1.2.1.99": Syntax(deflated=True),
    "1.2.840.10008.1.2.5": Syntax(plugin="pydicom"),  # RLE
    "1.2.840.10008.1.2.4.50": Syntax(plugin="gdcm", read_codestream=read_jpeg),  # JPEG baseline
    "1.2.840.10008.1.2.4.51": Syntax(plugin="gdcm", read_codestream=read_jpeg),  # JPEG extended
    "1.2.840.10008.1.2.4.57": Syntax(plugin="gdcm", read_codestream=read_jpeg),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": Syntax(plugin="gdcm", read_codestream=read_jpeg),  # JPEG lossless, first order
    "1.2.840.10008.1.2.4.80": Syntax(plugin="gdcm", read_codestream=read_jpeg),  # JPEG-LS
    "1.2.840.10008.1.2.4.81": Syntax(plugin="gdcm", read_codestream=read_jpeg),  # JPEG-LS, near lossless
    "1.2.840.10008.1.2.4.90": Syntax(plugin="pylibjpeg", read_codestream=read_j2k),  # JPEG 2000, lossless only
    "1.2.840.10008.1.2.4.91": Syntax(plugin="pylibjpeg", read_codestream=read_j2k),  # JPEG 2000
    "1.2.840.10008.1.2.4.201": Syntax(plugin="pylibjpeg", read_codestream=read_j2k),  # HTJ2K, lossless only
    "1.2.840.10008.1.2.4.202": Syntax(plugin="pylibjpeg", read_codestream=read_j2k),  # HTJ2K, lossless RPCL
    "1.2.840.10008.1.2.4.203": Syntax(plugin="pylibjpeg", read_codestream=read_j2k),  # HTJ2K
}


class Stored(NamedTuple):
    """A frame's stored values, uint16 or int16 (rows, columns), read-only, and the names of its marks."""

    container: np.ndarray
    marks: tuple[str, ...] = ()


def syntax_of(uid: str) -> Syntax:
    """Return the transfer syntax of a UID. Raise DicomError if it is not supported."""
    syntax = SYNTAXES.get(uid)
    if syntax is None:
        from pydicom.uid import UID

        name = UID(uid).name if UID(uid).is_transfer_syntax else "an unknown transfer syntax"
        raise DicomError("transfer_syntax", f"{name} is not read")
    return syntax


def native_frames(
    pixels: memoryview, declared: int, form: PixelForm, little_endian: bool
) -> Iterator[Stored | DicomError]:
    """Yield each frame of uncompressed ``pixels``. ``declared`` is their length in bytes as the file gives it."""
    if form.bits_allocated == 8 and not little_endian:
        raise DicomError("pixel_format", "8-bit pixels in big endian order are not read")
    needed = form.frames * form.frame_bytes
    marks = ("excess",) if len(pixels) > needed + needed % 2 else ()
    dtype = np.dtype(f"{'<' if little_endian else '>'}{'i' if form.signed else 'u'}{form.bits_allocated // 8}")
    for index in range(form.frames):
        start = index * form.frame_bytes
        if len(pixels) < start + form.frame_bytes:
            message = f"PixelData holds {len(pixels)} bytes where {max(declared, needed)} are declared: a cut file"
            yield DicomError("truncated", message)
        else:
            values = np.frombuffer(pixels, dtype, form.rows * form.columns, start).reshape(form.rows, form.columns)
            yield Stored(_as_container(values, form), marks)


def compressed_frames(stream: BytesIO, uid: str, form: PixelForm) -> Iterator[Stored | DicomError]:
    """Yield each frame of the fragments that begin at the position of ``stream``.

    A damaged frame gives a DicomError, and the next one is still tried.
    """
    from pydicom.encaps import generate_frames

    syntax = syntax_of(uid)
    position = stream.tell()
    left = stream.seek(0, 2) - position
    stream.seek(position)
    if left > form.frames * (2 * form.frame_bytes + CODESTREAM_SLACK):
        raise DicomError("too_large", "far more compressed bytes than the image has")
    frames = generate_frames(stream, number_of_frames=form.frames)
    for index in range(form.frames):
        try:
            data = next(frames, None)
            if not data:
                raise DicomError("truncated", f"there are only {index} compressed frames: a cut file")
            yield _decode(data, uid, syntax, form)
        except DicomError as error:
            yield error
        except MemoryError:
            raise
        except Exception as error:  # damaged data can raise anything in a decoder
            yield DicomError("decoding", f"the compressed pixels are damaged ({type(error).__name__})")


def _decode(data: bytes, uid: str, syntax: Syntax, form: PixelForm) -> Stored:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    marks: tuple[str, ...] = ()
    precision = form.bits_stored
    if syntax.read_codestream is None:
        check_rle(data, form.bits_allocated // 8, form.rows * form.columns)
    else:
        codestream = syntax.read_codestream(data)
        _check_codestream(codestream, uid, form)
        precision = codestream.precision
        marks = ("lossy",) if codestream.lossy else ()
    values, _ = get_decoder(uid).as_array(
        encapsulate([data]),
        index=0,
        raw=True,
        decoding_plugin=syntax.plugin,
        rows=form.rows,
        columns=form.columns,
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=form.bits_allocated,
        bits_stored=form.bits_stored,
        pixel_representation=int(form.signed),
        pixel_keyword="PixelData",
    )
    container = _as_container(values, form)
    if precision > form.bits_stored and not _fits(container, form):
        message = f"the codestream has numbers of {precision} bits, BitsStored is {form.bits_stored}"
        raise DicomError("pixel_format", message)
    return Stored(container, marks)


def _fits(container: np.ndarray, form: PixelForm) -> bool:
    """Whether all values fit into BitsStored, signed or unsigned.

    Many correct exports compress 12 bits as 16. If the upper bits are used, the header is wrong.
    """
    low, high, size = int(container.min()), int(container.max()), 1 << form.bits_stored
    return (low >= 0 and high < size) or (form.signed and low >= -size // 2 and high < size // 2)


def _check_codestream(codestream: Codestream, uid: str, form: PixelForm) -> None:
    size = (codestream.rows, codestream.columns, codestream.components)
    if size != (form.rows, form.columns, 1):
        message = f"the header says {form.rows} x {form.columns} x 1, the codestream {size[0]} x {size[1]} x {size[2]}"
        raise DicomError("pixel_format", message)
    if codestream.lossy and codestream.precision > 8 and uid in LOSSY_JPEG:
        raise DicomError("transfer_syntax", f"{codestream.precision}-bit lossy JPEG is not read")
    if codestream.precision > form.bits_allocated:
        message = f"the codestream has {codestream.precision} bits, the header {form.bits_allocated}"
        raise DicomError("pixel_format", message)


def _as_container(values: np.ndarray, form: PixelForm) -> np.ndarray:
    return values.astype(np.int16 if form.signed else np.uint16, copy=False)
