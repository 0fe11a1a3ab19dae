"""Memory that is used again for each picture: new pages cost more than the arithmetic on them."""

from __future__ import annotations

import math
import threading

import numpy as np

_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 memory of ``shape`` with whatever is in it; the next call with ``name`` gives it away again."""
    count = math.prod(shape)
    buffers = _kept.__dict__
    if name not in buffers or len(buffers[name]) < count:
        buffers[name] = np.empty(count, dtype=np.float32)
    return buffers[name][:count].reshape(shape)
