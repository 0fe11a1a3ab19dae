"""The two forms of a stored image's file: plain ``.npy``, and ``.b2nd``, a compressed array of one chunk (Blosc2).

A file for each image in either form, so that an image is whole or absent, can be made again alone, and may have any
shape. Reading opens, reads and closes: nothing is shared, so that any number of threads and processes can do it.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np

SUFFIXES = {"npy": ".npy", "blosc2": ".b2nd"}
COMPRESSED_SHARE = 0.5  # of the bytes of int16 CT; at most, as benchmarks/image_files.py measures


def encode_image(image: np.ndarray, suffix: str) -> tuple[bytes | memoryview, ...]:
    """Return the content of the file of an image of any shape and plain type, in the form that ``suffix`` names.

    It comes in parts, to be written one after the other, so that the pixels need not be copied.
    """
    image = np.ascontiguousarray(image)
    if suffix == SUFFIXES["blosc2"]:
        return (_compress(image),)
    return _npy_header(image.shape, image.dtype), image.data.cast("B")


def load_image(path: Path) -> np.ndarray:
    """Read an image file; its suffix says the form.

    Raises FileNotFoundError or another OSError, and ValueError where the file is cut or damaged in a way that shows:
    neither form has a checksum of its pixels (:func:`common.preprocessing.convert.picture_hash` does that).
    """
    if path.suffix == SUFFIXES["blosc2"]:
        return _decompress(path.read_bytes())
    try:
        return np.load(path, allow_pickle=False)
    except EOFError as error:
        raise ValueError(str(error)) from None


@lru_cache(maxsize=64)
def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return what np.save writes before the pixels of such an array; it takes 25 microseconds to make it."""
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _compress(image: np.ndarray) -> bytes:
    import blosc2

    # Neighbouring pixels differ little: their high bytes apart from their low ones, as differences, take 154 KB for a
    # noisy slice of 512 x 512; bits apart (bitshuffle) 190 KB. A higher level gains 5 % and takes three times as long.
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
        # Not blosc2.open, which would also run the expressions and functions that a .b2nd file can hold.
        stored = blosc2.ndarray_from_cframe(content)
        if stored.chunks != stored.shape:
            raise ValueError(f"chunks of {stored.chunks} for an array of {stored.shape}")
        image = np.empty(stored.shape, stored.dtype)
        stored.schunk.decompress_chunk(0, dst=image)
    except (RuntimeError, ValueError, TypeError, SyntaxError, MemoryError) as error:  # blosc2's for damaged files
        raise ValueError(f"damaged ({type(error).__name__})") from None
    return image
