from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.datasets.samplers import SAMPLERS, RandomSampler, count_occurrences


@pytest.mark.parametrize("name", list(SAMPLERS))
@given(length=st.integers(0, 50), seed=st.integers(0, 1000), epoch=st.integers(0, 100))
def test_an_epoch_has_each_image_once(name: str, length: int, seed: int, epoch: int) -> None:
    sampler = SAMPLERS[name](length, seed)
    sampler.seek(epoch, 0)
    keys = list(sampler)
    assert sorted(key.index for key in keys) == list(range(length))
    assert {(key.epoch, key.occurrence) for key in keys} <= {(epoch, 0)}


@pytest.mark.parametrize("name", list(SAMPLERS))
@given(length=st.integers(1, 50), offset=st.integers(0, 50), epoch=st.integers(0, 3))
def test_seeking_to_an_offset_gives_the_rest_of_the_epoch(name: str, length: int, offset: int, epoch: int) -> None:
    offset = min(offset, length)
    whole, rest = SAMPLERS[name](length, 3), SAMPLERS[name](length, 3)
    whole.seek(epoch, 0)
    rest.seek(epoch, offset)
    assert list(rest) == list(whole)[offset:]
    assert len(rest) == length - offset


def test_random_epochs_differ_and_the_same_epoch_of_the_same_seed_does_not() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = RandomSampler(100, seed)
        sampler.seek(epoch, 0)
        return [key.index for key in sampler]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != list(range(100))


@given(st.lists(st.integers(0, 6), max_size=40))
def test_occurrences_count_how_often_an_index_came_before(values: list[int]) -> None:
    seen: Counter[int] = Counter()
    expected = []
    for value in values:
        expected.append(seen[value])
        seen[value] += 1
    assert count_occurrences(np.array(values, dtype=np.int64)).tolist() == expected
