"""Splits one order of images among several processes, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.datasets.images import SampleKey
from common.datasets.samplers import EpochSampler


class ShardedSampler:
    """The part of a sampler's order that one of N processes loads: batch i goes to rank i mod N.

    Every image goes to exactly one process. Batches are composed as in a single process, so that results are equal to
    the bit. Processes may get different numbers of batches.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, rank: int, world_size: int, rows: np.ndarray | None = None
    ) -> None:
        """``sampler`` gives the whole order. ``rows`` (N,) counts each sample's predictions; None: one each."""
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.rows = np.ones(sampler.length, dtype=np.int64) if rows is None else rows

    def positions(self, rank: int) -> np.ndarray:
        """Return the samples of ``rank``, by their places in the order."""
        places = np.arange(len(self.sampler))
        return places[places // self.batch_size % self.world_size == rank]

    def predictions(self, rank: int) -> np.ndarray:
        """Return which rows of a single process' predictions ``rank`` computes, in its own order."""
        rows = self.rows[self.sampler.order(self.sampler.epoch)]
        starts, own = np.cumsum(rows) - rows, self.positions(rank)
        return np.concatenate([own[:0], *(np.arange(starts[place], starts[place] + rows[place]) for place in own)])

    def __len__(self) -> int:
        return len(self.positions(self.rank))

    def __iter__(self) -> Iterator[SampleKey]:
        own = iter(self.positions(self.rank).tolist())
        place = next(own, None)
        for current, key in enumerate(self.sampler):
            if place is None:
                return
            if current == place:
                yield key
                place = next(own, None)
