"""The two file formats of stored images: plain ``.npy``, and ``.b2nd``, a compressed array of one chunk (Blosc2).

Each image has a file of its own. It is therefore complete or absent, can be made again alone, and may have any shape.
Reading shares nothing, so that any number of threads and processes can read at once.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np

from common.errors import WorkError

SUFFIXES = {"npy": ".npy", "blosc2": ".b2nd"}
COMPRESSED_SHARE = 0.5  # of the bytes of int16 CT, at most, as measured by benchmarks/image_files.py


def encode_image(image: np.ndarray, suffix: str) -> tuple[bytes | memoryview, ...]:
    """Return an image's file content in the format of ``suffix``. The image may have any shape and plain type.

    The content comes in parts to be written one after another, which saves copying the pixels.
    """
    image = np.ascontiguousarray(image)
    if suffix == SUFFIXES["blosc2"]:
        return (_compress(image),)
    return _npy_header(image.shape, image.dtype), image.data.cast("B")


def load_image(path: Path) -> np.ndarray:
    """Read an image file in the format of its suffix.

    Raises FileNotFoundError or another OSError, and ValueError if the file is visibly cut or damaged. Neither format
    has a checksum of its pixels; :func:`common.preprocessing.convert.picture_hash` computes one.
    """
    if path.suffix == SUFFIXES["blosc2"]:
        return _decompress(path.read_bytes())
    try:
        return np.load(path, allow_pickle=False)
    except EOFError as error:
        raise ValueError(str(error)) from None


def read_mask(path: Path, shape: tuple[int, int], kinds: int) -> np.ndarray:
    """Read a mask, uint8 of ``shape``, a bit for each of ``kinds``.

    Raise WorkError, naming the file, if it is damaged or of another form.
    """
    try:
        mask = load_image(path)
    except (OSError, ValueError):
        raise WorkError(f"{path}: the mask is cut or damaged; write it anew") from None
    if mask.dtype != np.uint8 or mask.shape != shape:
        raise WorkError(
            f"{path}: the mask has shape {mask.shape} and type {mask.dtype}; its image needs {shape} and uint8"
        )
    if mask.max(initial=0) >= 1 << kinds:
        raise WorkError(
            f"{path}: the mask has the value {mask.max()}; a bit for each of {kinds} kinds gives at most "
            f"{(1 << kinds) - 1}"
        )
    return mask


@lru_cache(maxsize=64)
def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return what np.save writes before the pixels. Cached, since making it takes 25 microseconds."""
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _compress(image: np.ndarray) -> bytes:
    import blosc2

    # Neighbouring pixels differ little. A noisy slice of 512 x 512 takes 154 KB if high and low bytes are separated and
    # stored as differences, 190 KB with bitshuffle. A higher level gains 5 % and takes three times as long.
    settings = {
        "codec": blosc2.Codec.ZSTD,
        "clevel": 1,
        "filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
        "filters_meta": [0, image.itemsize],
        "typesize": image.itemsize,
        "nthreads": 1,
    }
    return blosc2.asarray(image, chunks=image.shape, blocks=image.shape, cparams=settings).to_cframe()


def _decompress(content: bytes) -> np.ndarray:
    import blosc2

    try:
        # Not blosc2.open: it would run expressions and functions that a .b2nd file may hold.
        stored = blosc2.ndarray_from_cframe(content)
        if stored.chunks != stored.shape:
            raise ValueError(f"chunks of {stored.chunks} for an array of {stored.shape}")
        image = np.empty(stored.shape, stored.dtype)
        stored.schunk.decompress_chunk(0, dst=image)
    except (RuntimeError, ValueError, TypeError, SyntaxError, MemoryError) as error:  # blosc2's for damaged files
        raise ValueError(f"damaged ({type(error).__name__})") from None
    return image
