"""A table of normal numbers from which every device reads its noise: quick, and the same bits everywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

TABLE_SIZE = 2**22


@lru_cache(maxsize=1)
def normal_table() -> np.ndarray:
    """Return the table: float32 (4194304,), standard normal, the same in every process (16 MB, made at first use)."""
    return np.random.default_rng(0).standard_normal(TABLE_SIZE, dtype=np.float32)


def table_place(seed: int) -> tuple[int, int]:
    """Return the start in the table and the sign (-1 or 1) of the noise of a seed (0 to 2**31 - 2)."""
    return seed % TABLE_SIZE, 1 - 2 * (seed // TABLE_SIZE % 2)


def noise_field(start: int, count: int) -> np.ndarray:
    """Return ``count`` numbers of the table from ``start`` on; its end joins its beginning."""
    if start + count <= TABLE_SIZE:
        return normal_table()[start : start + count]
    return np.take(normal_table(), np.arange(start, start + count), mode="wrap")
