"""Tables that loading processes share instead of copying."""

from __future__ import annotations

import numpy as np


class SharedArray:
    """A numpy array in memory that several processes see: passing it to a worker costs a file handle, not its bytes.

    An array of Python objects, or one that is pickled, would be copied into every worker, and copied again page by
    page as reference counts change. ``array`` must not be written to.
    """

    def __init__(self, array: np.ndarray) -> None:
        """Copy ``array``, of any type of fixed size, into shared memory."""
        import torch  # here: preprocessing's processes import the datasets' module and need no torch

        self.dtype = array.dtype
        self.shape = array.shape
        flat = np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8).copy()
        self.memory = torch.from_numpy(flat).share_memory_() if flat.size else torch.from_numpy(flat)

    @property
    def array(self) -> np.ndarray:
        """The array, without a copy."""
        return self.memory.numpy().view(self.dtype).reshape(self.shape)
