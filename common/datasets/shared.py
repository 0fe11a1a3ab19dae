"""Tables that loading processes share instead of copying."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from typing import Any

import numpy as np


class SharedArray:
    """A numpy array in memory that several processes see: passing it to a worker costs a file handle, not its bytes.

    An array of Python objects, or one that is pickled, would be copied into every worker, and copied again page by
    page as reference counts change. ``array`` must not be written to. The memory has no name and takes no space in
    /dev/shm, of which a container may have 64 MB.
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
        """Return what a process that is being started needs."""
        return {"dtype": self.dtype, "shape": self.shape, "file": reduction.DupFd(self.file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dtype, self.shape = state["dtype"], state["shape"]
        self._open(state["file"].detach())

    def _open(self, file: int) -> None:
        self.file = file
        self.memory = mmap.mmap(file, 0)
        weakref.finalize(self, os.close, file)


def _nameless_file(size: int) -> int:
    """Return a file of zeros that is gone when nobody has it open any more: in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("table")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)
    return file
