"""In which order images are drawn: a function of seed and epoch alone, so that a run can be continued anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from common.hashing import stable_hash


class SampleKey(NamedTuple):
    """What a dataset is asked for: the image's index, the epoch, and how often it was drawn in this epoch before.

    Loading processes that live for the whole run never hear of an epoch in another way.
    """

    index: int
    epoch: int
    occurrence: int


class EpochSampler:
    """Base of all samplers; iterating gives the keys of the epoch, from the offset, that :meth:`seek` was told."""

    def __init__(self, length: int, seed: int) -> None:
        """``length``: images in the dataset."""
        self.length = length
        self.seed = seed
        self.epoch = 0
        self.offset = 0

    def order(self, epoch: int) -> np.ndarray:
        """Return the indices of a whole epoch in their order; an index may come more than once."""
        raise NotImplementedError

    def seek(self, epoch: int, offset: int) -> None:
        """Make the next iteration start in ``epoch`` after ``offset`` samples."""
        self.epoch = epoch
        self.offset = offset

    def __len__(self) -> int:
        """Samples that are left in the epoch from the offset."""
        return self.length - self.offset

    def __iter__(self) -> Iterator[SampleKey]:
        order = self.order(self.epoch)
        occurrences = count_occurrences(order)
        for index, occurrence in zip(order[self.offset :].tolist(), occurrences[self.offset :].tolist(), strict=True):
            yield SampleKey(index, self.epoch, occurrence)


class RandomSampler(EpochSampler):
    """Each image once in an epoch, in a random order that is another one in each epoch."""

    def order(self, epoch: int) -> np.ndarray:
        """Return a permutation drawn from (seed, epoch)."""
        return np.random.default_rng(stable_hash("order", self.seed, epoch)).permutation(self.length)


class SequentialSampler(EpochSampler):
    """Each image once in an epoch, in the dataset's order."""

    def order(self, epoch: int) -> np.ndarray:
        """Return 0, 1, …"""
        return np.arange(self.length)


SAMPLERS: dict[str, Callable[[int, int], EpochSampler]] = {"random": RandomSampler, "sequential": SequentialSampler}


def count_occurrences(order: np.ndarray) -> np.ndarray:
    """Return for each position how often its value stands before it: (5, 2, 5, 5) gives (0, 0, 1, 2)."""
    if len(order) == 0:
        return np.zeros(0, dtype=np.int64)
    by_value = np.argsort(order, kind="stable")
    starts = np.flatnonzero(np.diff(order[by_value], prepend=order[by_value[0]] - 1))
    lengths = np.diff(starts, append=len(order))
    occurrences = np.empty(len(order), dtype=np.int64)
    occurrences[by_value] = np.arange(len(order)) - np.repeat(starts, lengths)
    return occurrences
