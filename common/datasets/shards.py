"""One order of images for several processes: each takes its own batches of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.datasets.samplers import EpochSampler, SampleKey


class ShardedSampler:
    """The part of a sampler's order that one process of N loads: batch number i is that of rank i mod N.

    Every image belongs to one process, none comes twice, and a batch is composed as in a single process: what is
    computed from it is the same to the bit. Processes may get different numbers of batches.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, rank: int, world_size: int) -> None:
        """``sampler`` gives the whole order."""
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def positions(self, rank: int) -> np.ndarray:
        """Return which samples belong to ``rank``, by their place in the order."""
        places = np.arange(len(self.sampler))
        return places[places // self.batch_size % self.world_size == rank]

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
