"""Arrays that loading processes share instead of copying."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from typing import Any

import numpy as np


class SharedArray:
    """A numpy array in shared memory. Passing it to a worker costs a file handle, not its bytes.

    A pickled array, or one of Python objects, would be copied into every worker, and again page by page as reference
    counts change. Don't write to ``array``. The memory has no name and takes no space in /dev/shm, which in a container
    may have only 64 MB.
    """

    def __init__(self, array: np.ndarray) -> None:
        """Copy ``array``, of any type of fixed size, into shared memory."""
        self.dtype = array.dtype
        self.shape = array.shape
        self._open(_nameless_file(max(1, array.nbytes)))
        self.array[...] = array

    @property
    def array(self) -> np.ndarray:
        """The array, without a copy."""
        return np.ndarray(self.shape, self.dtype, self.memory)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a new process needs."""
        return {"dtype": self.dtype, "shape": self.shape, "file": reduction.DupFd(self.file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dtype, self.shape = state["dtype"], state["shape"]
        self._open(state["file"].detach())

    def _open(self, file: int) -> None:
        self.file = file
        self.memory = mmap.mmap(file, 0)
        weakref.finalize(self, os.close, file)


def _nameless_file(size: int) -> int:
    """Return a file of zeros that vanishes once nobody has it open; it lies in memory if the system can do that."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("table")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)
    return file
