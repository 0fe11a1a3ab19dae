"""The table of noise: normal, and the same wherever it is read."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy import stats

from common.datasets.noise import TABLE_SIZE, noise_field, normal_table, table_place


def test_the_table_is_normal_and_the_same_everywhere() -> None:
    table = normal_table()
    assert (table.shape, table.dtype) == ((TABLE_SIZE,), np.float32)
    assert abs(table.mean()) < 2e-3
    assert abs(table.std() - 1) < 2e-3
    assert stats.kstest(table[:100_000], "norm").pvalue > 1e-3
    for lag in (1, 3, 512, 1536):  # neighbours in a row, of a channel, below each other
        assert abs(np.corrcoef(table[:-lag], table[lag:])[0, 1]) < 2e-3
    assert hashlib.sha256(table[:1000].tobytes()).hexdigest()[:16] == "15dc9be47832f6f9"


def test_seeds_begin_at_places_of_their_own_and_the_end_goes_on_at_the_start() -> None:
    table = normal_table()
    assert table_place(5) == (5, 1)
    assert table_place(5 + TABLE_SIZE) == (5, -1)
    np.testing.assert_array_equal(noise_field(5, 10), table[5:15])
    np.testing.assert_array_equal(noise_field(TABLE_SIZE - 4, 10), np.concatenate([table[-4:], table[:6]]))
    start, _ = table_place(2**31 - 2)
    assert len(noise_field(start, TABLE_SIZE + 7)) == TABLE_SIZE + 7
